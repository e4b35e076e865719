"""A member of a consumer group on Kafka.

A thread of its own keeps the membership alive and moves rebalances on while the user's thread works. As long as records
are out and not committed, this member does not join a rebalance, so that its partitions stay; only a `poll` that comes
`session_timeout_s` after the group began to wait gives them up.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata
from kafka import TopicPartition as KafkaPartition
from kafka import errors as kafka

from anyloop.log.dead_letters import send_dead_letter
from anyloop.log.errors import CommitFailed, LogError
from anyloop.log.events import Position, Record
from anyloop.log.interface import Consumer, EventLog, TopicPartition
from anyloop.log.kafka_assignor import SlotAssignor
from anyloop.log.kafka_clients import connect
from anyloop.log.kafka_cluster import KafkaCluster
from anyloop.log.kafka_errors import log_errors, translate
from anyloop.log.kafka_events import record_of
from anyloop.log.kafka_membership import Membership
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings

logger = logging.getLogger(__name__)

_SLICE_SECONDS = 0.5  # of a poll, between which another thread may close the consumer
_STEP_SECONDS = 0.05  # of a rebalance moved on beside the user's thread
_CLOSE_MS = 1000
_HEARTBEAT_MS = 500  # members learn of a rebalance by the answer to a heartbeat


class KafkaGroupConsumer(Consumer, ConsumerRebalanceListener):
    """`begin` holds the offsets where partitions start that the group has never committed; others start at their
    beginning."""

    def __init__(
        self,
        log: EventLog,
        cluster: KafkaCluster,
        address: KafkaAddress,
        settings: KafkaSettings,
        group: str,
        topics: Mapping[str, int],
        begin: Mapping[TopicPartition, int],
    ) -> None:
        self._log = log
        self._group = group
        self._settings = settings
        self._where = f"{cluster.where}: group {group}"
        self._topics = dict(topics)
        self._names = {cluster.name(topic): topic for topic in topics}
        self._kafka_names = {topic: name for name, topic in self._names.items()}
        self._begin = dict(begin)
        self._lock = threading.RLock()  # guards the client and all that follows
        self._delivered: dict[TopicPartition, int] = {}  # handed out, not committed
        self._lost: set[TopicPartition] = set()  # went to another member since the last poll
        self._seeks: dict[TopicPartition, int] = {}
        self._waited_for: float | None = None  # since when the group waits for this member to join again
        self._silent: float | None = None  # since when no coordinator answers
        self._active = time.monotonic()  # when the user last polled or committed
        self._stuck = False  # the user has not for max_poll_interval_s, and others may have the partitions
        self._closing = threading.Event()
        config = settings.consumer() | {
            "group_id": cluster.name(group),
            "heartbeat_interval_ms": min(_HEARTBEAT_MS, round(settings.session_timeout_s * 1000 / 3)),
            "auto_offset_reset": "none",  # decided here, partition by partition
            "partition_assignment_strategy": [SlotAssignor(self._owned)],
        }
        with log_errors(self._where):
            self._client: KafkaConsumer = connect(KafkaConsumer, address, settings, config)
        self._membership = Membership(self._client)
        try:
            with log_errors(self._where):
                self._client.subscribe(list(self._names), listener=self)
                self._membership.learn_topics(round(settings.timeout_s * 1000))
        except BaseException:
            self._client.close(autocommit=False, timeout_ms=_CLOSE_MS)
            raise
        self._minder = threading.Thread(target=self._mind, name=f"group-{group}", daemon=True)
        self._minder.start()

    # --- reading

    def poll(self, max_records: int = 500, timeout: float = 1.0) -> list[Record]:
        deadline = time.monotonic() + timeout
        with self._lock:
            self._forget_lost()
        while True:
            with self._lock:
                self._check()
                self._note_activity()
                left = max(0.0, deadline - time.monotonic())
                records = self._poll(max_records, min(left, _SLICE_SECONDS))
            if records or time.monotonic() >= deadline:
                return records

    def _poll(self, limit: int, seconds: float) -> list[Record]:
        if self._holds_back(late=True):
            time.sleep(min(seconds, _STEP_SECONDS))
            with log_errors(self._where):
                self._membership.stay()
            return []
        try:
            polled = self._client.poll(timeout_ms=seconds * 1000, max_records=limit)
        except kafka.NoOffsetForPartitionError as error:
            self._start(error.args[0])
            return []
        except kafka.OffsetOutOfRangeError as error:
            self._restart(error.args[0])
            return []
        except kafka.LogTruncationError as error:
            self._restart(dict.fromkeys(error.divergent_offsets))
            return []
        except (kafka.KafkaError, OSError, RuntimeError) as error:
            self._membership.revive()
            raise translate(error, self._where) from error
        # A partition that went and came back in here is read anew from its commit, and what was out before is void.
        self._forget_lost()
        if not polled:
            self._check_silence()
            return []
        self._silent = None
        records = []
        for tp, messages in polled.items():
            ours = self._ours(tp)
            records += [record_of(ours[0], message) for message in messages]
            self._delivered[ours] = messages[-1].offset + 1
        return records

    def _forget_lost(self) -> None:
        for lost in self._lost:
            self._delivered.pop(lost, None)
        self._lost.clear()

    def _start(self, partitions: Iterable[KafkaPartition]) -> None:
        """Partitions that the group has never committed."""
        for tp in partitions:
            begin = self._begin.get(self._ours(tp))
            if begin is None:
                self._client.seek_to_beginning(tp)
            else:
                self._client.seek(tp, begin)

    def _restart(self, partitions: Mapping[KafkaPartition, int | None]) -> None:
        for tp, offset in partitions.items():
            logger.warning(
                "%s: %s/%d has no offset %s any more (retention, or a broker lost its end); on from its beginning",
                self._where,
                *self._ours(tp),
                offset,
            )
            self._client.seek_to_beginning(tp)

    def _check_silence(self) -> None:
        now = time.monotonic()
        if not self._membership.coordinator_away:
            self._silent = None
        elif self._silent is None:
            self._silent = now
        elif now - self._silent > self._settings.timeout_s:
            raise LogError(
                f"{self._where}: no broker has answered for {now - self._silent:.0f} seconds", retriable=True
            )

    # --- offsets

    def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        deadline = time.monotonic() + self._settings.timeout_s
        with self._lock:
            self._check()
            self._note_activity()
            chosen = dict(self._delivered if offsets is None else offsets)
            if any(offset < 0 for offset in chosen.values()):
                raise ValueError("an offset is 0 or more")
            while chosen and not self._try_commit(chosen, deadline):
                self._advance(_STEP_SECONDS)
            for tp, offset in chosen.items():
                if self._delivered.get(tp, offset) <= offset:
                    self._delivered.pop(tp, None)

    def _try_commit(self, chosen: Mapping[TopicPartition, int], deadline: float) -> bool:
        """False while the group rebalances and takes no commits."""
        held = {self._ours(tp) for tp in self._owned()}
        if gone := {tp for tp in chosen if tp not in held or tp in self._lost}:
            raise CommitFailed(f"{self._where}: {sorted(gone)} moved to another consumer; poll again")
        wanted = {self._theirs(tp): OffsetAndMetadata(offset, "", -1) for tp, offset in chosen.items()}
        try:
            self._client.commit(wanted, timeout_ms=max(1.0, (deadline - time.monotonic()) * 1000))
        except kafka.KafkaError as error:
            if _is_rebalance(error):
                if time.monotonic() < deadline:
                    return False
                raise LogError(f"{self._where}: still rebalances, and takes no commits", retriable=True) from error
            failure = translate(error, self._where)
            if isinstance(failure, CommitFailed):
                self._lost |= held
            raise failure from error
        except (OSError, RuntimeError) as error:
            raise translate(error, self._where) from error
        return True

    def seek(self, topic: str, partition: int, offset: int) -> None:
        if not 0 <= partition < self._topics.get(topic, 0) or offset < 0:
            raise ValueError(f"no partition {partition} of {topic!r} in this subscription, or a negative offset")
        with self._lock:
            self._check()
            tp = self._theirs((topic, partition))
            if tp in self._owned():
                self._client.seek(tp, offset)
            else:
                self._seeks[topic, partition] = offset

    def positions(self) -> dict[TopicPartition, int]:
        with self._lock:
            self._check()
            found = {self._ours(tp): self._position(tp) for tp in self._owned()}
        return {tp: offset for tp, offset in found.items() if offset is not None}

    def _position(self, tp: KafkaPartition) -> int | None:
        """None where the cluster has not yet told from where to read."""
        try:
            offset: int | None = self._client.position(tp, timeout_ms=0)
        except kafka.KafkaError:
            return None
        return offset

    def dead_letter(self, record: Record, reason: str) -> Position:
        return send_dead_letter(self._log, self._group, record, reason)

    # --- membership

    def _mind(self) -> None:
        pause = _STEP_SECONDS
        while not self._closing.wait(pause):
            if not self._lock.acquire(blocking=False):
                continue  # the user's thread does it itself
            try:
                if self._closing.is_set():
                    return
                if time.monotonic() - self._active > self._settings.max_poll_interval_s:
                    self._leave_to_others()
                elif self._membership.settled or self._holds_back(late=False):
                    self._membership.stay()
                else:
                    self._advance(_STEP_SECONDS)
                pause = _STEP_SECONDS if self._membership.must_rejoin else 5 * _STEP_SECONDS
            except Exception as error:  # the next poll meets the same and raises it
                logger.debug("%s: %s", self._where, error)
            finally:
                self._lock.release()

    def _note_activity(self) -> None:
        self._active = time.monotonic()
        self._stuck = False

    def _leave_to_others(self) -> None:
        """Its user hangs, so that a heart that beats means nothing. The next `poll` joins again."""
        if not self._stuck:
            self._stuck = True
            logger.warning(
                "%s: no poll and no commit for %g seconds (ANYLOOP_KAFKA_MAX_POLL_INTERVAL_S): its partitions go to "
                "others until the next poll",
                self._where,
                self._settings.max_poll_interval_s,
            )
            self._lost |= {self._ours(tp) for tp in self._owned()}
            self._membership.leave()

    def _advance(self, seconds: float) -> None:
        with log_errors(self._where):
            self._membership.advance(seconds)

    def _holds_back(self, *, late: bool) -> bool:
        """While records are out. `late`: not for longer than the session timeout."""
        if not self._membership.must_rejoin:
            self._waited_for = None
            return False
        now = time.monotonic()
        if self._waited_for is None:
            self._waited_for = now
        return bool(self._delivered) and not (late and now - self._waited_for >= self._settings.session_timeout_s)

    def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        # On the client's thread, while the thread that has the lock waits for it.
        for tp in assigned:
            offset = self._seeks.pop(self._ours(tp), None)
            if offset is not None:
                self._client.seek(tp, offset)

    def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        self._lost |= {self._ours(tp) for tp in revoked}

    def _owned(self) -> set[KafkaPartition]:
        return set(self._client.assignment())

    def _ours(self, tp: KafkaPartition) -> TopicPartition:
        return self._names[tp.topic], tp.partition

    def _theirs(self, tp: TopicPartition) -> KafkaPartition:
        return KafkaPartition(self._kafka_names.get(tp[0], tp[0]), tp[1])

    def _check(self) -> None:
        if self._closing.is_set():
            raise LogError(f"the consumer of group {self._group} is closed")

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        with self._lock:
            try:
                self._client.close(autocommit=False, timeout_ms=_CLOSE_MS)
            except Exception as error:
                logger.warning(
                    "%s: left without saying so, others wait for the session timeout: %s", self._where, error
                )
        if self._minder is not threading.current_thread():
            self._minder.join()


def _is_rebalance(error: Any) -> bool:
    cause = error.args[0] if isinstance(error, kafka.CommitFailedError) and error.args else error
    return isinstance(cause, kafka.RebalanceInProgressError)
