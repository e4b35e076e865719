"""How partitions are shared out, without a broker: evenly, partition p of every topic to one member, few moves."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.protocol.consumer.metadata import ConsumerProtocolSubscription

from anyloop.log.kafka_assignor import SlotAssignor, share_out
from anyloop.log.partition import partition_of

TOPICS = {"responses": 4, "feedback": 4, "checkpoints": 1}
Held = dict[str, set[TopicPartition]]


@dataclass
class Cluster:
    topics: dict[str, int]

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(range(self.topics[topic])) if topic in self.topics else None


@dataclass
class Member:
    member_id: str
    metadata: ConsumerProtocolSubscription


def member(
    name: str, held: set[TopicPartition], topics: tuple[str, ...] = tuple(TOPICS), generation: int = 1
) -> Member:
    assignor = SlotAssignor(lambda: held)
    assignor.on_assignment(None, generation)
    # As it travels: the leader decodes what the member has encoded.
    return Member(name, ConsumerProtocolSubscription.decode(assignor.metadata(topics).encode()))


def rebalance(held: Held, topics: dict[str, int] = TOPICS, generation: int = 1) -> Held:
    """One round: what each member holds after it."""
    members = [member(name, partitions, tuple(topics), generation) for name, partitions in held.items()]
    assigned = SlotAssignor(set).assign(Cluster(topics), members)
    return {name: set(assignment.partitions()) for name, assignment in assigned.items()}


def settled(held: Held, topics: dict[str, int] = TOPICS) -> Held:
    """A member from which something was taken makes the group rebalance once more."""
    after = rebalance(held, topics)
    return after if all(held[name] <= after[name] for name in held) else rebalance(after, topics, generation=2)


def slots(held: set[TopicPartition]) -> set[int]:
    return {tp.partition for tp in held}


def test_one_member_gets_everything() -> None:
    (everything,) = rebalance({"a": set()}).values()
    assert everything == {TopicPartition(topic, part) for topic, width in TOPICS.items() for part in range(width)}


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [4]), (2, [2, 2]), (3, [1, 1, 2]), (4, [1, 1, 1, 1]), (5, [0, 1, 1, 1, 1])]
)
def test_members_get_equal_shares_and_the_same_partitions_of_every_topic(count: int, sizes: list[int]) -> None:
    after = settled({f"m{number}": set() for number in range(count)})
    assert sorted(len(slots(held)) for held in after.values()) == sizes
    for held in after.values():
        for topic, width in TOPICS.items():
            assert {tp.partition for tp in held if tp.topic == topic} == {slot for slot in slots(held) if slot < width}


def test_what_another_member_holds_is_given_up_in_a_first_rebalance_and_taken_in_a_second() -> None:
    first = rebalance({"old": rebalance({"old": set()})["old"], "new": set()})
    assert len(slots(first["old"])) == 2
    assert first["new"] == set()
    second = rebalance(first)
    assert second["old"] == first["old"]
    assert len(slots(second["new"])) == 2


def test_when_a_member_goes_the_others_keep_what_they_have() -> None:
    before = settled({"a": set(), "b": set(), "c": set()})
    gone = before.pop("a")
    after = rebalance(before)
    assert all(before[name] <= after[name] for name in before)
    assert set().union(*after.values()) >= gone


def test_of_two_claims_the_one_of_the_later_generation_counts_and_of_equal_ones_neither() -> None:
    claim = {TopicPartition("responses", 0)}
    cluster = Cluster({"responses": 1})
    late, stale = member("late", claim, ("responses",), 7), member("stale", claim, ("responses",), 3)
    assigned = SlotAssignor(set).assign(cluster, [stale, late])
    assert {name: set(given.partitions()) for name, given in assigned.items()} == {"late": claim, "stale": set()}
    twin = member("twin", claim, ("responses",), 7)
    assigned = SlotAssignor(set).assign(cluster, [twin, late])
    assert sorted(len(given.partitions()) for given in assigned.values()) == [0, 1]


def test_a_topic_goes_only_to_those_who_subscribe_to_it() -> None:
    both = member("both", set())
    one = member("one", set(), ("responses",))
    assigned = SlotAssignor(set).assign(Cluster(TOPICS), [both, one])
    assert {tp.topic for tp in assigned["one"].partitions()} == {"responses"}
    assert len(assigned["one"].partitions()) == 2
    assert {tp for tp in assigned["both"].partitions() if tp.topic == "feedback"} == {
        TopicPartition("feedback", part) for part in range(4)
    }


def test_a_topic_that_the_leader_does_not_know_yet_is_left_out() -> None:
    assigned = SlotAssignor(set).assign(Cluster({}), [member("a", set())])
    assert assigned["a"].partitions() == []


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 64),
    members=st.lists(st.sampled_from([f"m{number}" for number in range(12)]), min_size=1, unique=True),
    owners=st.dictionaries(st.integers(0, 63), st.sampled_from([f"m{number}" for number in range(12)])),
)
def test_every_slot_has_an_owner_shares_differ_by_one_at_most_and_nothing_moves_without_need(
    width: int, members: list[str], owners: dict[int, str]
) -> None:
    shares = share_out(range(width), members, owners)
    assert sorted(shares) == list(range(width))
    counts = [sum(owner == name for owner in shares.values()) for name in members]
    assert max(counts) - min(counts) <= 1
    kept = sum(owners.get(slot) == owner for slot, owner in shares.items())
    held = Counter(owner for slot, owner in owners.items() if slot < width and owner in members)
    floor, rest = divmod(width, len(members))
    # All can keep `floor`; of those that have more, `rest` can keep one more.
    most = sum(min(held[name], floor) for name in members) + min(rest, sum(held[name] > floor for name in members))
    assert kept == most


@pytest.mark.parametrize("partitions", [12, 64])
def test_a_million_conversations_spread_evenly_over_partitions_and_over_the_members_that_share_them(
    partitions: int, million_keys: list[str]
) -> None:
    counts = Counter(partition_of(key, partitions) for key in million_keys)
    expected = len(million_keys) / partitions
    chi_square = sum((counts[part] - expected) ** 2 / expected for part in range(partitions))
    # 99.99 % quantiles of chi-square with 11 and 63 degrees of freedom.
    assert chi_square < {12: 37.37, 64: 113.5}[partitions]
    assert max(counts.values()) / expected < 1.02
    held = settled(
        {f"trainer{number}": set() for number in range(4)}, {"responses": partitions, "feedback": partitions}
    )
    loads = [sum(counts[slot] for slot in slots(member_held)) for member_held in held.values()]
    assert sum(loads) == len(million_keys)
    assert max(loads) / (len(million_keys) / 4) < 1.02


@pytest.fixture(scope="module")
def million_keys() -> list[str]:
    """Shaped like the gateway's conversation ids; the same in every run."""
    return [f"conv-{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(1_000_000)]
