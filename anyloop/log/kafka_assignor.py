"""How a consumer group shares out partitions: partition p of every topic goes to one member, evenly, and stays there.

A response and its feedback have one key and so one partition number; the member that gets the one must get the other.
Kafka's range assignment does that too, but moves nearly everything when a member comes or goes, and stops the group
while it does. Here members keep what they have through a rebalance; only what must move is given up, and is given to
its new owner in a second one (cooperative rebalance, KIP-429).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kafka import TopicPartition
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

_VERSION = 2  # of the consumer protocol: what a member owns, and since which generation of the group


def share_out(slots: Sequence[int], members: Iterable[str], owners: Mapping[int, str]) -> dict[int, str]:
    """Each slot to one member; the numbers of slots differ by one at most, and as few as possible leave their owner."""
    owned: dict[str, list[int]] = {member: [] for member in members}
    for slot in slots:
        if owners.get(slot) in owned:
            owned[owners[slot]].append(slot)
    base, extra = divmod(len(slots), len(owned))
    shares: dict[int, str] = {}
    room: list[str] = []
    # Those with most keep most, so that no slot moves only to even out a remainder.
    for index, member in enumerate(sorted(owned, key=lambda member: (-len(owned[member]), member))):
        quota = base + (index < extra)
        kept = owned[member][:quota]
        shares |= dict.fromkeys(kept, member)
        room += [member] * (quota - len(kept))
    free = (slot for slot in slots if slot not in shares)
    return shares | dict(zip(free, room, strict=True))


class SlotAssignor(AbstractPartitionAssignor):
    """`owned` tells what the member holds at the moment; the leader of the group calls `assign`."""

    name = "anyloop-slots"

    def __init__(self, owned: Callable[[], Iterable[TopicPartition]]) -> None:
        self._owned = owned
        self._generation = -1

    def supported_protocols(self) -> list[RebalanceProtocol]:
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolSubscription:
        by_topic: dict[str, list[int]] = defaultdict(list)
        for topic, part in sorted(self._owned()):
            by_topic[topic].append(part)
        owned = [
            ConsumerProtocolSubscription.TopicPartition(topic=t, partitions=parts) for t, parts in by_topic.items()
        ]
        return ConsumerProtocolSubscription(
            version=_VERSION,
            topics=sorted(topics),
            user_data=b"",
            owned_partitions=owned,
            generation_id=self._generation,
        )

    def on_assignment(self, assignment: Any, generation: int) -> None:
        self._generation = generation

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, ConsumerProtocolAssignment]:
        """`members` carry `member_id` and the `metadata` made above."""
        held = _held({member.member_id: member.metadata for member in members})
        assigned: dict[str, dict[str, list[int]]] = {member.member_id: defaultdict(list) for member in members}
        for subscribers, topics in _topics_by_subscribers(members).items():
            widths = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
            slots = range(max(widths.values()))
            plan = share_out(
                slots, subscribers, {slot: owner for slot in slots if (owner := _owner(slot, topics, held))}
            )
            for topic, width in widths.items():
                for part in range(width):
                    # What another still holds is given up first, and assigned in the rebalance that follows.
                    if held.get(TopicPartition(topic, part), plan[part]) == plan[part]:
                        assigned[plan[part]][topic].append(part)
        return {
            member: ConsumerProtocolAssignment(_VERSION, sorted(topics.items()), b"")
            for member, topics in assigned.items()
        }


def _topics_by_subscribers(members: Sequence[Any]) -> dict[tuple[str, ...], list[str]]:
    subscribers: dict[str, list[str]] = defaultdict(list)
    for member in members:
        for topic in member.metadata.topics:
            subscribers[topic].append(member.member_id)
    topics: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for topic, names in sorted(subscribers.items()):
        topics[tuple(sorted(names))].append(topic)
    return topics


def _held(members: Mapping[str, Any]) -> dict[TopicPartition, str]:
    """Who holds what. Of two claims the one of the later generation holds; of equal ones neither does."""
    claims: dict[TopicPartition, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for member, metadata in members.items():
        for owned in metadata.owned_partitions or ():
            for part in owned.partitions:
                claims[TopicPartition(owned.topic, part)][metadata.generation_id].append(member)
    latest = {tp: by_generation[max(by_generation)] for tp, by_generation in claims.items()}
    return {tp: claimants[0] for tp, claimants in latest.items() if len(claimants) == 1}


def _owner(slot: int, topics: Iterable[str], held: Mapping[TopicPartition, str]) -> str | None:
    """Who holds most partitions of the slot."""
    owners = Counter(held[TopicPartition(topic, slot)] for topic in topics if (topic, slot) in held)
    return max(sorted(owners), key=lambda owner: owners[owner], default=None)
