"""One scenario from a calm start to the comparison of what was said, logged and learned."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from anyloop.cli.exits import CommandError
from anyloop.log import FEEDBACK, RESPONSES, TOPICS, EventLog, open_log
from anyloop.registry import Registry
from protos.anyloop.v1 import events_pb2
from tests.faults.audit import Attempt, Findings, Logged, LoggedFeedback, LoggedResponse, Window, audit
from tests.faults.event_log import LogUnderTest
from tests.faults.load import Load
from tests.faults.scenarios import NOTHING, MayFail, Scenario
from tests.faults.stack import MAX_WAIT_S, Stack

_CALM_S = 4.0
_HEALTHY_S = 90.0
_GRACE_S = 2.0  # longest pause of the gateway's gRPC channels between two attempts to reconnect
_DRAINED_S = 60.0
_LEARNED_S = 150.0
_ROUND_S = 30.0
_MAIN = (RESPONSES, FEEDBACK)
_UNLOGGED = "anyloop_unlogged_responses_total"
_LINEAGES = ("policy", "critique")


@dataclass
class Row:
    """What one scenario showed."""

    scenario: Scenario
    findings: Findings
    windows: list[Window]
    attempts: list[Attempt]
    seconds: float
    notes: dict[str, Any]

    @property
    def clean(self) -> bool:
        return not self.findings.violations


class Runner:
    """The stage of one scenario. `say` hears what goes on."""

    def __init__(self, stack: Stack, log: LogUnderTest, say: Callable[[str], None]) -> None:
        self.stack, self.log, self._say = stack, log, say
        self._windows: list[Window] = []
        self._registry = Registry(stack.settings.effective_registry_dir)
        self._stuck: list[str] = []
        self._serves_unlogged = False

    def run(self, scenario: Scenario, *, seed: int) -> Row:
        """Never raises for a fault of the product: that is a violation in the row."""
        begun = time.time()
        self._serves_unlogged = scenario.serves_unlogged
        self.stack.died.clear()
        self.stack.not_ready.clear()
        self.stack.peak_outbox_bytes = self.stack.slowest_ready_s = 0.0
        learned_before, versions_before = self._learned(), len(self._registry.versions("policy"))
        with open_log(self.stack.direct_url) as log:
            start = {spec.name: log.end_offsets(spec.name) for spec in TOPICS}
        unlogged_before = self.stack.metric("policy", _UNLOGGED) if scenario.serves_unlogged else 0.0
        with Load(self.stack.url, seed=seed) as load:
            self.stack.pause(_CALM_S)
            try:
                scenario.inject(self)
                self.stack.pause(_CALM_S)
            except CommandError as error:
                self._stuck.append(str(error))
            self._say(f"{scenario.name}: the load ends")
            load.stop()
        unlogged = int(self.stack.metric("policy", _UNLOGGED) - unlogged_before) if scenario.serves_unlogged else 0
        with open_log(self.stack.direct_url) as log:
            if not self._stuck:
                self._settle(log, start, load.attempts, unlogged, learned_before)
            logged = self._logged(log, start)
        learned = {name: ids[len(learned_before[name]) :] for name, ids in self._learned().items()}
        findings = audit(
            load.attempts,
            self._windows,
            logged,
            learned,
            unlogged=unlogged,
            refinements=self._refinements(versions_before),
            at_least=scenario.at_least,
        )
        findings.violations += self._stuck + self.stack.died + load.broken
        if scenario.stays_ready and self.stack.not_ready:
            found = self.stack.not_ready
            findings.violations.append(f"the gateway was not ready {len(found)} times, the first: {found[0]}")
        notes = {
            "peak_outbox_bytes": int(self.stack.peak_outbox_bytes),
            "slowest_ready_s": round(self.stack.slowest_ready_s, 3),
            "policy_versions": len(self._registry.versions("policy")) - versions_before,
            "logs": str(self.stack.settings.home / "logs"),
        }
        return Row(scenario, findings, self._windows, load.attempts, time.time() - begun, notes)

    @contextmanager
    def fault(self, name: str, may_fail: MayFail = NOTHING) -> Iterator[None]:
        self._say(name)
        begun = time.time()
        try:
            yield
            self.stack.await_healthy(_HEALTHY_S)
            healthy = time.time()
            self._say(f"{name}: healthy after {healthy - begun:.1f} s")
            self.stack.pause(_GRACE_S)
        finally:
            self._windows.append(Window(name, begun, time.time(), may_fail, self._serves_unlogged))

    def learning(self) -> None:
        self.stack.wait_until(self._in_a_round, 10.0)

    def _in_a_round(self) -> bool:
        """A phase has ended since the last round did."""
        events = [line["event"] for line in _journal(self.stack)]
        return bool(events) and events[-1] == "phase"

    def _settle(
        self,
        log: EventLog,
        start: dict[str, dict[int, int]],
        attempts: list[Attempt],
        unlogged: int,
        learned_before: dict[str, list[str]],
    ) -> None:
        """Waits until the outboxes are empty and all that came into the log is learned; both have a bound."""
        accepted = {one.id for one in attempts if one.kind == "chat" and one.status == "200"}
        said = {one.id for one in attempts if one.kind == "feedback" and one.status == "200"}

        def drained() -> bool:
            seen = self._logged(log, start)
            missing = accepted - {one.id for one in seen.responses}
            return len(missing) <= unlogged and said <= {one.id for one in seen.feedback}

        def learned() -> bool:
            seen = self._logged(log, start)
            known = {one.id for one in seen.responses}
            policy = set(self._learned()["policy"][len(learned_before["policy"]) :])
            return {one.id for one in seen.feedback if one.about in known} <= policy

        waited = time.monotonic()
        for condition, name, seconds in ((drained, "drained", _DRAINED_S), (learned, "learned", _LEARNED_S)):
            within = self._every_second(condition, seconds)
            self._say(f"{name if within else f'not {name}'} after {time.monotonic() - waited:.1f} s")
        # For what would come twice: alone, it waits so long for company, and then makes a round.
        self.stack.pause(MAX_WAIT_S + 1.0)
        self.stack.wait_until(lambda: not self._in_a_round(), _ROUND_S)

    def _every_second(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (found := condition()) and time.monotonic() < deadline:
            self.stack.pause(1.0)
        return found

    def _logged(self, log: EventLog, start: dict[str, dict[int, int]]) -> Logged:
        responses, feedback = [], []
        for topic in _MAIN:
            for partition, offset in start[topic].items():
                for record in log.read(topic, partition=partition, offset=offset):
                    message = record.event.unwrap()
                    if isinstance(message, events_pb2.ResponseEvent):
                        responses.append(LoggedResponse(message.response_id, message.created_unix_ms / 1000))
                    elif isinstance(message, events_pb2.FeedbackEvent):
                        about = message.feedback.response_id
                        feedback.append(LoggedFeedback(message.feedback_id, about, message.idempotency_key))
        dead = [spec.name for spec in TOPICS if spec.name.endswith(".dlq")]
        letters = sum(sum(log.end_offsets(name).values()) - sum(start[name].values()) for name in dead)
        return Logged(responses, feedback, letters)

    def _learned(self) -> dict[str, list[str]]:
        """The feedback ids in the manifests of each lineage, in the order of the versions."""
        return {
            lineage: [
                name
                for version in self._registry.versions(lineage)
                for name in self._registry.manifest(version).metrics.get("feedback_ids", ())
            ]
            for lineage in _LINEAGES
        }

    def _refinements(self, versions_before: int) -> int:
        """How many pairs of people's own refinements the new policies were trained on."""
        metrics = [self._registry.manifest(v).metrics for v in self._registry.versions("policy")[versions_before:]]
        return sum(one.get("pairs_by_origin", {}).get("refinement", 0) for one in metrics)


def _journal(stack: Stack) -> list[dict[str, Any]]:
    path = stack.settings.home / "trainer" / "rounds.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]
