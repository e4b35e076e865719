"""Is what people were told the same as what the log holds, and as what was learned? Pure arithmetic on ids.

Words used: a response is *accepted* when the client got all of it, feedback when the client heard yes. An event is
*unheard* when it stands in the log although no client heard of it: the connection ended before the answer did.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

OK = "200"


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

    @property
    def ambiguous(self) -> bool:
        """Whether it may have had its effect all the same. A 4xx and a refused connection say that it has not."""
        return self.status not in (OK, "refused") and not self.status.startswith("4")


@dataclass(frozen=True)
class Window:
    """While a fault lasts, and until everything is healthy again. `may_fail` says which requests may fail, and how."""

    name: str
    begun: float
    ended: float
    may_fail: Mapping[str, frozenset[str]]

    def explains(self, attempt: Attempt) -> bool:
        overlaps = attempt.begun <= self.ended and attempt.ended >= self.begun
        return overlaps and attempt.status in self.may_fail.get(attempt.kind, frozenset())


@dataclass(frozen=True)
class Logged:
    """What came into the log: ids as often as they stand there, feedback with the response it names."""

    responses: Sequence[str]
    feedback: Sequence[tuple[str, str]]
    dead_letters: int = 0


@dataclass
class Findings:
    """The row of one scenario. Whatever stands in `violations` is a fault of the product."""

    responses: dict[str, int] = field(default_factory=dict)
    feedback: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def audit(
    attempts: Sequence[Attempt],
    windows: Sequence[Window],
    logged: Logged,
    learned: Mapping[str, Sequence[str]],
    *,
    unlogged: int = 0,
) -> Findings:
    """`learned` are the feedback ids in the manifests of each lineage, with repeats. `unlogged` is how many finished
    responses the service itself counted as not recorded."""
    found = Findings()
    known = set(logged.responses)
    _responses(found, attempts, logged, unlogged)
    _feedback(found, attempts, logged)
    _learned(found, {name for name, about in logged.feedback if about in known}, learned)
    found.feedback["about_unlogged_responses"] = len({name for name, about in logged.feedback if about not in known})
    if logged.dead_letters:
        found.violations.append(f"{logged.dead_letters} events went to the dead letters")
    _failures(found, attempts, windows)
    return found


def _responses(found: Findings, attempts: Sequence[Attempt], logged: Logged, unlogged: int) -> None:
    chats = [one for one in attempts if one.kind == "chat"]
    accepted = {one.id for one in chats if one.status == OK}
    distinct = set(logged.responses)
    missing = accepted - distinct
    unheard = distinct - accepted
    found.responses = {
        "accepted": len(accepted),
        "logged": len(distinct & accepted),
        "unlogged": unlogged,
        "unheard": len(unheard),
        "duplicates": len(logged.responses) - len(distinct),
    }
    if len(missing) != unlogged:
        found.violations.append(
            f"{len(missing)} accepted responses are not in the log, {unlogged} were counted as unlogged: "
            + _some(missing)
        )
    if len(unheard) > sum(one.ambiguous for one in chats):
        found.violations.append(f"{len(unheard)} responses in the log that nobody asked for: {_some(unheard)}")


def _feedback(found: Findings, attempts: Sequence[Attempt], logged: Logged) -> None:
    said = [one for one in attempts if one.kind == "feedback"]
    accepted = {one.id for one in said if one.status == OK}
    names = [name for name, _ in logged.feedback]
    missing, unheard = accepted - set(names), set(names) - accepted
    found.feedback = {
        "accepted": len(accepted),
        "logged": len(set(names) & accepted),
        "unheard": len(unheard),
        "duplicates": len(names) - len(set(names)),
    }
    if missing:
        found.violations.append(f"{len(missing)} accepted feedback events are not in the log: {_some(missing)}")
    if len(unheard) > sum(one.ambiguous for one in said):
        found.violations.append(f"{len(unheard)} feedback events in the log that nobody sent: {_some(unheard)}")


def _learned(found: Findings, expected: set[str], learned: Mapping[str, Sequence[str]]) -> None:
    """Every id once in the policy's lineage; in another lineage at most once."""
    policy = set(learned.get("policy", ()))
    found.feedback |= {"expected": len(expected), "learned": len(policy & expected)}
    if expected - policy:
        missing = expected - policy
        found.violations.append(f"{len(missing)} feedback events in the log were never learned from: {_some(missing)}")
    for lineage, names in sorted(learned.items()):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            found.violations.append(f"{len(twice)} feedback events were learned twice by {lineage}: {_some(twice)}")
        if strange := set(names) - expected:
            found.violations.append(f"{lineage} learned {len(strange)} events that the log lacks: {_some(strange)}")


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
        during = [w.name for w in windows if first.begun <= w.ended and first.ended >= w.begun]
        where = f"during {during[0]}" if during else "outside every fault"
        found.violations.append(f"{len(failures)} x {name} without an explanation, the first {where}: {first.detail}")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (" ..." if len(ordered) > 3 else "")
