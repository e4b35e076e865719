"""Is what people were told the same as what the log holds, and as what was learned? Pure arithmetic on ids.

Words used: a response is *accepted* when the client got all of it, feedback when the client heard yes. An event is
*unheard* when it stands in the log although no client heard of it: the connection ended before the answer did. A
*statement* is what a person said of a response, however often it was sent.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

OK = "200"
# Statuses that say that nothing was done. The gateway takes feedback or refuses it, there is nothing between; a chat
# that ends in 503 may have been answered and recorded by a service that then could not pass the answer on.
_NOTHING_DONE = {"feedback": frozenset({"refused", "503"}), "chat": frozenset({"refused"})}
_LATE_S = 5.0  # an answer nobody waits for any more is recorded within


@dataclass(frozen=True)
class Attempt:
    """One request of a client; times are Unix seconds. `id` is the response's or the feedback's, where it is known.

    `status` is the HTTP status, or how it went without one: "refused" (no connection), "cut" (the connection ended
    before the answer did), "broken stream" (an error after the first chunk), "timeout".
    """

    kind: str  # chat, media, feedback, lookup
    begun: float
    ended: float
    status: str
    id: str = ""
    detail: str = ""
    about: str = ""  # of feedback: the response
    key: str = ""  # of feedback: the idempotency key; without one it is sent once

    @property
    def ambiguous(self) -> bool:
        """Whether it may have had its effect all the same. A 4xx and a refused connection say that it has not."""
        nothing_done = _NOTHING_DONE.get(self.kind, frozenset())
        return self.status != OK and self.status not in nothing_done and not self.status.startswith("4")


@dataclass(frozen=True)
class Window:
    """While a fault lasts, and until everything is healthy again. `may_fail` says which requests may fail, and how;
    `unlogged` whether answers may go on without a record."""

    name: str
    begun: float
    ended: float
    may_fail: Mapping[str, frozenset[str]]
    unlogged: bool = False

    def touches(self, attempt: Attempt) -> bool:
        return attempt.begun <= self.ended and attempt.ended >= self.begun

    def explains(self, attempt: Attempt) -> bool:
        return self.touches(attempt) and attempt.status in self.may_fail.get(attempt.kind, frozenset())


class LoggedResponse(NamedTuple):
    id: str
    at: float  # Unix seconds, when the answer ended


class LoggedFeedback(NamedTuple):
    id: str
    about: str
    key: str = ""


@dataclass(frozen=True)
class Logged:
    """What came into the log, as often as it stands there."""

    responses: Sequence[LoggedResponse]
    feedback: Sequence[LoggedFeedback]
    dead_letters: int = 0


@dataclass
class Findings:
    """The row of one scenario. Whatever stands in `violations` is a fault of the product."""

    responses: dict[str, int] = field(default_factory=dict)
    feedback: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def add(self, what: str, names: Collection[str]) -> None:
        """A violation, unless there are none of them."""
        if names:
            self.violations.append(f"{len(names)} {what}: {_some(names)}")


def audit(
    attempts: Sequence[Attempt],
    windows: Sequence[Window],
    logged: Logged,
    learned: Mapping[str, Sequence[str]],
    *,
    unlogged: int = 0,
    refinements: int | None = None,
    at_least: int = 0,
) -> Findings:
    """`learned` are the feedback ids in the manifests of each lineage, with repeats; `refinements` how many pairs of
    people's own the policy was trained on, where every piece of feedback brings one. `unlogged` is how many finished
    responses the service itself counted as not recorded. `at_least` so many events of each kind must be accepted, and
    the faults have an effect; 0 asks for neither."""
    found = Findings()
    known = {one.id for one in logged.responses}
    excused = _responses(found, attempts, windows, logged, unlogged)
    _feedback(found, attempts, logged)
    _learned(found, {one.id for one in logged.feedback if one.about in known}, learned, refinements)
    adrift = {one.id: one.about for one in logged.feedback if one.about not in known}
    found.feedback["about_unlogged_responses"] = len(adrift)
    found.add(
        "feedback events are about responses that the log should have",
        {name for name, about in adrift.items() if about not in excused},
    )
    if logged.dead_letters:
        found.violations.append(f"{logged.dead_letters} events went to the dead letters")
    _failures(found, attempts, windows)
    _effect(found, attempts, windows, unlogged, at_least)
    return found


def _responses(
    found: Findings, attempts: Sequence[Attempt], windows: Sequence[Window], logged: Logged, unlogged: int
) -> set[str]:
    """The ids of the accepted responses that may be missing."""
    chats = [one for one in attempts if one.kind == "chat"]
    accepted = {one.id: one for one in chats if one.status == OK}
    times = {one.id: one.at for one in logged.responses}
    missing, unheard = accepted.keys() - times.keys(), times.keys() - accepted.keys()
    found.responses = {
        "accepted": len(accepted),
        "logged": len(times.keys() & accepted.keys()),
        "unlogged": unlogged,
        "unheard": len(unheard),
        "duplicates": len(logged.responses) - len(times),
    }
    unrecorded = [window for window in windows if window.unlogged]
    excused = {name for name in missing if any(window.touches(accepted[name]) for window in unrecorded)}
    found.add("accepted responses are not in the log", missing - excused)
    if len(excused) > unlogged:
        found.add(f"accepted responses are not in the log, {unlogged} were counted as unlogged", excused)
    unsure = sum(one.ambiguous and any(window.touches(one) for window in unrecorded) for one in chats)
    unsure -= sum(any(window.begun <= times[name] <= window.ended for window in unrecorded) for name in unheard)
    if unlogged > len(excused) + max(unsure, 0):
        found.violations.append(f"{unlogged} responses were counted as unlogged, {len(excused)} are not in the log")
    found.add("responses in the log that nobody asked for", _unasked({name: times[name] for name in unheard}, chats))
    found.add("responses stand in the log more than once", _repeated(one.id for one in logged.responses))
    return excused


def _unasked(unheard: Mapping[str, float], chats: Sequence[Attempt]) -> set[str]:
    """What is left when each request that ended without an answer takes one event: its own where it heard the id,
    else one of its time."""
    unsure = [one for one in chats if one.ambiguous]
    left = unheard.keys() - {one.id for one in unsure}
    nameless = sorted((one for one in unsure if not one.id), key=lambda one: one.ended)
    unasked = set()
    for name in sorted(left, key=lambda name: unheard[name]):
        at = unheard[name]
        match = next((one for one in nameless if one.begun <= at <= one.ended + _LATE_S), None)
        if match is None:
            unasked.add(name)
        else:
            nameless.remove(match)
    return unasked


def _feedback(found: Findings, attempts: Sequence[Attempt], logged: Logged) -> None:
    tries: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for one in attempts:
        if one.kind == "feedback":
            tries[one.about, one.key].append(one)
    accepted = {one.id for sent in tries.values() for one in sent if one.status == OK}
    ids: dict[tuple[str, str], set[str]] = defaultdict(set)
    for event in logged.feedback:
        ids[event.about, event.key].add(event.id)
    names = {name for same in ids.values() for name in same}
    unheard = names - accepted
    given_up = {key for (_, key), sent in tries.items() if key and not any(one.status == OK for one in sent)}
    found.feedback = {
        "accepted": len(accepted),
        "logged": len(names & accepted),
        "unheard": len(unheard),
        "given_up": len(given_up),
        "duplicates": len(logged.feedback) - len(names),
    }
    found.add("accepted feedback events are not in the log", accepted - names)
    found.add("statements never heard yes, however often they were sent", given_up)
    found.add(
        "statements are in the log under several ids",
        {_some(same) for same in ids.values() if len(same) > 1},
    )
    nobodys, refused = set(), set()
    for statement, same in ids.items():
        sent = tries.get(statement)
        if sent is None:
            nobodys |= same
        elif not any(one.ambiguous for one in sent):
            refused |= same - accepted
    found.add("feedback events in the log that nobody sent", nobodys)
    found.add("feedback events in the log that the gateway refused", refused)
    found.add("feedback events stand in the log more than once", _repeated(one.id for one in logged.feedback))


def _learned(
    found: Findings, expected: set[str], learned: Mapping[str, Sequence[str]], refinements: int | None
) -> None:
    """Every id once in the policy's lineage; in another lineage at most once."""
    policy = set(learned.get("policy", ()))
    found.feedback |= {"expected": len(expected), "learned": len(policy & expected)}
    found.add("feedback events in the log were never learned from", expected - policy)
    for lineage, names in sorted(learned.items()):
        found.add(f"feedback events were learned twice by {lineage}", _repeated(names))
        if strange := set(names) - expected:
            found.violations.append(f"{lineage} learned {len(strange)} events that the log lacks: {_some(strange)}")
    if refinements is not None and refinements != len(learned.get("policy", ())):
        found.violations.append(
            f"the policy's manifests name {len(learned.get('policy', ()))} pieces of feedback, each with a refinement,"
            f" but it was trained on {refinements} of these"
        )


def _failures(found: Findings, attempts: Sequence[Attempt], windows: Sequence[Window]) -> None:
    count: Counter[str] = Counter()
    unexplained: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.status == OK:
            continue
        name = f"{attempt.kind} {attempt.status}"
        cause = next((window.name for window in windows if window.explains(attempt)), None)
        count[f"{name} · {cause or 'NOT EXPLAINED'}"] += 1
        if cause is None:
            unexplained.setdefault(name, []).append(attempt)
    found.failed = dict(count.most_common())
    for name, failures in unexplained.items():
        first = failures[0]
        during = [window.name for window in windows if window.touches(first)]
        where = f"during {during[0]}" if during else "outside every fault"
        found.violations.append(f"{len(failures)} x {name} without an explanation, the first {where}: {first.detail}")


def _effect(
    found: Findings, attempts: Sequence[Attempt], windows: Sequence[Window], unlogged: int, at_least: int
) -> None:
    """A fault that nobody could notice, or that nobody was there to notice, shows nothing."""
    for kind, counted in (("responses", found.responses), ("feedback events", found.feedback)):
        if counted["accepted"] < at_least:
            found.violations.append(f"only {counted['accepted']} {kind} were accepted, at least {at_least} should be")
    if not at_least:
        return
    for window in windows:
        within = [one for one in attempts if window.touches(one)]
        if "chat" not in window.may_fail and not any(one.kind == "chat" and one.status == OK for one in within):
            found.violations.append(f"nobody got an answer during {window.name}")
        if window.unlogged and not unlogged and not any(one.kind == "feedback" and one.status != OK for one in within):
            found.violations.append(f"{window.name}: nothing was refused and nothing unlogged, so it had no effect")


def _repeated(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (" ..." if len(ordered) > 3 else "")
