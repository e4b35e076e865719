"""What a group's member does between two polls of its user, and kafka-python's public API does not offer.

kafka-python moves a rebalance forward only inside `poll`. A join that ends between two polls is thrown away and begun
anew, and there are no heartbeats until a later poll has taken it up: members that poll briefly, or work for long, would
disturb their group for ever (docs/kafka-python.md). Here `advance` moves it without reading records, from any thread
that has the consumer to itself, and a join that has ended is taken up once.
"""

from typing import Any

from kafka import KafkaConsumer

_LEAVE_MS = 1000


class Membership:
    def __init__(self, consumer: KafkaConsumer) -> None:
        self._coordinator = consumer._coordinator
        self._finished: list[bytes] = []  # the assignment of a join that nobody has taken up
        self._join = self._coordinator._do_join_and_sync_async
        self._coordinator._do_join_and_sync_async = self._join_once

    async def _join_once(self) -> bytes:
        if self._coordinator.rebalance_in_progress() and self._finished:
            return self._finished.pop()
        self._finished.clear()
        assignment: bytes = await self._join()
        self._finished.append(assignment)
        return assignment

    def learn_topics(self, timeout_ms: int) -> None:
        """Waits for the partitions of the subscribed topics, else a first leader assigns none and begins again."""
        coordinator: Any = self._coordinator
        coordinator._net.run(coordinator._manager.wait_for, coordinator._cluster.request_update(), timeout_ms)

    @property
    def must_rejoin(self) -> bool:
        """The group, of which this is a member, rebalances and waits for it to join again."""
        return bool(self._coordinator.stable() and self._coordinator.need_rejoin())

    @property
    def settled(self) -> bool:
        return bool(self._coordinator.stable() and not self._coordinator.need_rejoin())

    @property
    def coordinator_away(self) -> bool:
        return bool(self._coordinator.coordinator_unknown())

    def advance(self, seconds: float) -> None:
        """Finds the coordinator, joins, takes up an assignment: as far as it gets in this time."""
        self._coordinator.poll(timeout_ms=round(seconds * 1000))

    def stay(self) -> None:
        """Tells the heartbeats that the user of this member is alive, however long the work takes."""
        self._coordinator.poll_heartbeat()

    def leave(self) -> None:
        """As after a `close`, but a later `advance` joins again."""
        self._coordinator.maybe_leave_group(timeout_ms=_LEAVE_MS)

    def revive(self) -> None:
        """Begins the heartbeats again after one of them has failed; kafka-python would go on without any."""
        self._coordinator._maybe_start_heartbeat_loop()
