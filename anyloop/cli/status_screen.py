"""The state of the loop for people: one line for each thing, what needs a hand in colour."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

from rich.markup import escape
from rich.table import Table

Row: TypeAlias = tuple[str, str, str]
_DIGEST = 8  # characters of a digest, for people
_FEW = 12  # replicas that are listed one by one; of more, only those that are not like the rest


def screen(report: dict[str, Any], now: float) -> Table:
    """`report` as `look` makes it; `now` is the time of day that ages count to."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for rows in (
        _gateway(report["gateway"]),
        *(_fleet(name, found) for name, found in report["fleets"].items()),
        _decoders(report["decoders"]),
        _weights(report, now),
        _log(report["log"]),
        _outboxes(report["outbox_bytes"]),
        _trainer(report),
    ):
        for row in rows:
            table.add_row(*row)
    return table


def _gateway(gateway: dict[str, Any]) -> Iterator[Row]:
    yield "gateway", "[green]ready[/]" if gateway["ready"] else "[red]not ready[/]", gateway["url"]


def _fleet(name: str, found: list[dict[str, Any]]) -> Iterator[Row]:
    answering = [one for one in found if one["reachable"]]
    if not answering:
        yield name, "[red]no answer[/]", ", ".join(one["address"] for one in found) if len(found) <= _FEW else ""
        return
    counted = Counter(one["serving_version"] for one in answering)
    running = sum(one["requests_running"] for one in answering)
    waiting = sum(one["requests_waiting"] for one in answering)
    work = f"{running} running, {waiting} waiting"
    if len(found) == 1:
        yield name, _state(answering[0]), f"{_served(answering[0])}  {work}{_trouble(answering[0])}"
        return
    mixed = len(counted) > 1
    shares = ", ".join(f"{version or 'no weights'} on {count}" for version, count in counted.most_common())
    state = "[yellow]mixed[/]" if mixed else "[green]serving[/]"
    if len(answering) < len(found):
        state = f"[red]{len(found) - len(answering)} of {len(found)} away[/]"
    yield name, state, f"{shares} of {len(found)} replicas  {work}"
    usual = counted.most_common(1)[0][0]
    shown = 0
    for one in found:
        odd = not one["reachable"] or one["serving_version"] != usual or one["draining"] or one["swap_failure"]
        if len(found) > _FEW and not (odd and shown < _FEW):
            continue
        shown += 1
        address = f"  {one['address']}"
        if not one["reachable"]:
            yield address, "[red]no answer[/]", ""
            continue
        load = f"{one['requests_running']} running, {one['requests_waiting']} waiting"
        yield address, _state(one), f"{_served(one)}  {load}{_trouble(one)}"


def _state(replica: dict[str, Any]) -> str:
    if replica["draining"]:
        return "[yellow]draining[/]"
    return "[green]serving[/]" if replica["serving_version"] else "[yellow]no weights yet[/]"


def _served(replica: dict[str, Any]) -> str:
    return f"{replica['serving_version']} [dim]{replica['digest'][:_DIGEST]}[/]"


def _trouble(replica: dict[str, Any]) -> str:
    return f"\n[red]{escape(replica['swap_failure'])}[/]" if replica["swap_failure"] else ""


def _decoders(decoders: dict[str, Any]) -> Iterator[Row]:
    state = "[green]serving[/]" if decoders["serving"] else "[red]no answer[/]"
    yield "decoders", state, decoders["address"]


def _weights(report: dict[str, Any], now: float) -> Iterator[Row]:
    """Who decided what serves, and what waits for a decision."""
    for lineage, state in report["log"]["checkpoints"].items():
        serving, decision, rollout = state["serving"], state["decision"], state["rollout"]
        if serving:
            since = f"{serving['version']} by {escape(serving['by'] or 'somebody')}{_why(serving)}"
            yield f"{lineage} promoted", ago(now - serving["unix_ms"] / 1000), since
        if decision and decision != serving and decision != rollout:
            colour = "red" if decision["state"] == "rejected" else "green"
            told = f"[{colour}]{decision['state']}[/] {decision['version']} by {escape(decision['by'])}{_why(decision)}"
            yield "  last decision", ago(now - decision["unix_ms"] / 1000), told
        if rollout:
            on = [one for one in report["fleets"].get(lineage, ()) if one.get("serving_version") == rollout["version"]]
            many = len(report["fleets"].get(lineage, ()))
            told = f"{rollout['version']} serves on {len(on)} of {many} replicas, approved {_age(now, rollout)}"
            yield "  rollout", "[yellow]under way[/]", told
        if state["candidates"]:
            newest, more = state["candidates"][-1], len(state["candidates"]) - 1
            yield "  candidate", "[yellow]waits[/]", f"{newest} for the gate{f', and {more} older' if more else ''}"


def _age(now: float, told: dict[str, Any]) -> str:
    return ago(now - told["unix_ms"] / 1000)


def _why(told: dict[str, Any]) -> str:
    return f": {escape(told['reason'])}" if told["reason"] else ""


def _log(log: dict[str, Any]) -> Iterator[Row]:
    if log["error"]:
        yield "log", "[red]no answer[/]", escape(log["error"])
        return
    yield "log", "[green]answers[/]", log["url"]
    for topic, count in log["events"].items():
        lag = log["lag"].get(topic)
        behind = "" if lag is None else "; the trainer has read all" if not lag else f"; the trainer is {lag} behind"
        yield f"  {topic}", str(count), f"events{behind}"
    for topic, count in log["dead_letters"].items():
        if count:
            yield f"  {topic}", f"[red]{count}[/]", "dead letters: `anyloop replay --dead-letters --dry-run`"


def _outboxes(waiting: dict[str, int]) -> Iterator[Row]:
    for name, size in waiting.items():
        if size:
            yield f"outbox of {name}", f"[yellow]{size}[/]", "bytes on disk that the log does not have yet"


def _trainer(report: dict[str, Any]) -> Iterator[Row]:
    """Its journal is on the machine where it runs: elsewhere only the lag tells of it."""
    trainer, last = report["trainer"], report["last_round"]
    if trainer["under_way"]:
        ended = ", ".join(trainer["under_way"]["ended"])
        yield "trainer", f"[green]round {trainer['under_way']['round']}[/]", f"so far: {escape(ended)}"
    elif last or trainer["expected"]:
        yield "trainer", "waits", "for enough feedback"
    if last:
        outcome = escape(str(last.get("outcome", "")))
        yield "  last round", outcome, f"round {last.get('round')}, {_seconds(last):.0f} s"
    if trainer["failure"]:
        yield "  its last try", "[red]failed[/]", escape(trainer["failure"])


def _seconds(last: dict[str, Any]) -> float:
    return float(sum((last.get("seconds") or {}).values()))


def ago(seconds: float) -> str:
    """A time that has passed, in the unit that a person would use."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"
