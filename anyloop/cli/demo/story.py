"""The demo from first to last: measure, then rounds of {ask, criticise, wait, measure}, then ask again."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from anyloop.cli.demo.asking import Exchange, ask, ask_all
from anyloop.cli.demo.checkpoint_topic import Announcement, CheckpointTopic
from anyloop.cli.demo.evaluation import Evaluation, evaluate, questions
from anyloop.cli.demo.results import DemoPlan, Round, SideBySide, Swap
from anyloop.cli.demo.screen import Screen
from anyloop.cli.demo.traffic import Traffic
from anyloop.cli.exits import CommandError
from anyloop.cli.journal import Journal
from anyloop.cli.rest import GatewayClient
from anyloop.world import SUBTASKS, tasks
from anyloop.world.annotate import Annotator

_POLL_S = 0.25
_SWAP_MARGIN_S = 2.0  # traffic this close to a swap counts as disturbed by it
_SWAP_TIMEOUT_S = 60.0
_REASKED_PER_SUBTASK = 6
_PEOPLE = 8  # who give feedback at the same time


class Story:
    """Drives a running AnyLoop. `alive` raises when a service has died; it is called in every wait."""

    def __init__(
        self,
        plan: DemoPlan,
        client: GatewayClient,
        checkpoints: CheckpointTopic,
        traffic: Traffic,
        screen: Screen,
        *,
        journal: Journal,
        policy_metrics_url: str,
        alive: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._client = client
        self._checkpoints = checkpoints
        self._traffic = traffic
        self._screen = screen
        self._journal = journal
        self._metrics_url = policy_metrics_url
        self._alive = alive
        self._held_out = questions("heldout", plan.eval_prompts, plan.seed)
        self._rng = np.random.default_rng([plan.seed, 1])
        self._annotator = Annotator(np.random.default_rng([plan.seed, 2]), partial_share=plan.partial_share)
        self._criticised: list[tuple[Exchange, str]] = []

    def measure(self, label: str) -> Evaluation:
        """Held-out success of what serves now."""
        with self._screen.phase(f"{label}: held-out prompts", len(self._held_out)) as advance:
            result = evaluate(self._client, self._held_out, on_answer=lambda _: self._tick(advance))
        self._screen.add(result)
        return result

    def round(self, number: int) -> Round:
        """Answers, critiques, the trainer's candidate, the gate's decision, the swap, the evaluation."""
        seconds: dict[str, float] = {}
        label = f"round {number}"
        self._checkpoints.news()  # what was announced before belongs to earlier rounds
        records_before = len(self._journal.rounds())

        begun = time.monotonic()
        exchanges = self._ask(label)
        seconds["ask"], begun = time.monotonic() - begun, time.monotonic()
        self._criticise(label, exchanges)
        seconds["feedback"] = time.monotonic() - begun
        said_at = time.time()

        stalls_before = self._stalls()
        candidate, decision = self._decision(label, records_before)
        seconds["learn"] = (candidate.at if candidate else time.time()) - said_at
        if candidate and decision:
            seconds["gate"] = decision.at - candidate.at
        swap = evaluation = None
        if decision and decision.state == "promoted":
            swap = self._swap(label, decision, stalls_before)
            seconds["swap"], begun = swap.ended - swap.begun, time.monotonic()
            evaluation = self.measure(f"{label}, {decision.version}")
            seconds["evaluate"] = time.monotonic() - begun
        elif decision:
            self._screen.say(f"{label}: {decision.version} rejected: {decision.reason}")
        return Round(
            number=number,
            asked=len(exchanges),
            right=sum(exchange.judgement.ok for exchange in exchanges),
            feedback_events=len(exchanges),
            candidate=decision.version if decision else "",
            state=decision.state if decision else "no candidate",
            reason=decision.reason if decision else "",
            seconds=seconds,
            trainer=self._record(records_before),
            gate=json.loads(decision.report_json) if decision and decision.report_json else {},
            swap=swap,
            evaluation=evaluation,
        )

    def ask_again(self) -> list[SideBySide]:
        """The first wrong answers of each subtask that were criticised, and what the serving version says now."""
        chosen: list[tuple[Exchange, str]] = []
        for subtask in SUBTASKS:
            wrong = [pair for pair in self._criticised if pair[0].task.subtask == subtask and not pair[0].judgement.ok]
            chosen += wrong[:_REASKED_PER_SUBTASK]
        with self._screen.phase("the criticised prompts again", len(chosen)) as advance:
            after = ask_all(
                self._client,
                [(exchange.task, exchange.seed) for exchange, _ in chosen],
                store=False,
                on_answer=lambda _: self._tick(advance),
            )
        return [SideBySide(before, said, now) for (before, said), now in zip(chosen, after, strict=True)]

    def _ask(self, label: str) -> list[Exchange]:
        asked = []
        for n in range(self._plan.prompts):
            task = tasks.sample(SUBTASKS[n % len(SUBTASKS)], "train", self._rng)
            asked.append((task, int(self._rng.integers(2**31))))
        with self._screen.phase(f"{label}: prompts in all subtasks", len(asked)) as advance:
            return ask_all(self._client, asked, store=True, on_answer=lambda _: self._tick(advance))

    def _criticise(self, label: str, exchanges: Sequence[Exchange]) -> None:
        said = [self._annotator.critique(one.task, one.answer, one.judgement) for one in exchanges]
        statements = [
            {
                "response_id": exchange.reply.id,
                "critique": critique,
                "idempotency_key": f"demo-{exchange.reply.id}",
            }
            for exchange, critique in zip(exchanges, said, strict=True)
        ]
        with (
            self._screen.phase(f"{label}: critiques", len(statements)) as advance,
            ThreadPoolExecutor(_PEOPLE, thread_name_prefix="feedback") as people,
        ):
            for _ in people.map(self._client.feedback, statements):
                self._tick(advance)
        self._criticised += zip(exchanges, said, strict=True)

    def _decision(self, label: str, records_before: int) -> tuple[Announcement | None, Announcement | None]:
        """The policy candidate of this round and what the gate said; (None, None) when the trainer made none."""
        candidate = None
        phase = self._journal.newest_phase()
        failures = len(self._journal.failures())
        deadline = time.monotonic() + self._plan.decision_timeout_s
        with self._screen.phase(f"{label}: the trainer learns", None) as advance:
            while time.monotonic() < deadline:
                for event in self._checkpoints.news():
                    if event.lineage == "policy" and event.state == "candidate":
                        candidate = event
                        self._screen.rename(f"{label}: the gate evaluates {event.version}")
                    elif event.lineage == "policy" and event.state in ("promoted", "rejected"):
                        return candidate, event
                if candidate is None and len(self._journal.rounds()) > records_before:
                    self._screen.say(
                        f"{label}: the trainer made no candidate: {json.dumps(self._record(records_before))}"
                    )
                    return None, None
                if candidate is None and phase != (phase := self._journal.newest_phase()):
                    self._screen.rename(f"{label}: the trainer learns ({phase} done)")
                if len(self._journal.failures()) > failures + 1:
                    raise CommandError(f"{label}: the trainer failed twice: {self._journal.failures()[-1]}")
                self._tick(advance)
                time.sleep(_POLL_S)
        raise CommandError(
            f"{label}: no decision after {self._plan.decision_timeout_s:.0f} s; see logs/trainer.log and logs/gate.log"
        )

    def _swap(self, label: str, decision: Announcement, stalls_before: tuple[float, float]) -> Swap:
        """Waits until the promoted version answers. Raises CommandError when it does not."""
        probe = tasks.sample("T2T", "train", np.random.default_rng(self._plan.seed))
        deadline = time.monotonic() + _SWAP_TIMEOUT_S
        with self._screen.phase(f"{label}: {decision.version} goes into service", None) as advance:
            while ask(self._client, probe, 0, store=False).reply.version != decision.version:
                if time.monotonic() > deadline:
                    raise CommandError(
                        f"{label}: {decision.version} is promoted, but another version still answers after "
                        f"{_SWAP_TIMEOUT_S:.0f} s; see logs/policy.log"
                    )
                self._tick(advance)
                time.sleep(0.05)
            ended = time.time()
            time.sleep(_SWAP_MARGIN_S)
            requests = self._traffic.settled(decision.at - _SWAP_MARGIN_S, ended + _SWAP_MARGIN_S)
        swaps, total = (now - before for now, before in zip(self._stalls(), stalls_before, strict=True))
        return Swap(
            version=decision.version,
            begun=decision.at,
            ended=ended,
            stall_seconds=total / swaps if swaps else float("nan"),
            requests=requests,
        )

    def _stalls(self) -> tuple[float, float]:
        """How many swaps the policy replica has made, and their stalls together in seconds."""
        text = httpx.get(self._metrics_url, timeout=5.0, trust_env=False).text
        found = {"_count": 0.0, "_sum": 0.0}
        for family in text_string_to_metric_families(text):
            if family.name == "anyloop_swap_stall_seconds":
                for sample in family.samples:
                    suffix = sample.name.removeprefix(family.name)
                    if suffix in found:
                        found[suffix] += sample.value
        return found["_count"], found["_sum"]

    def _record(self, index: int) -> dict[str, Any]:
        """The record of a round; the trainer writes it after the decision, so wait for it a little."""
        for _ in range(40):
            records = self._journal.rounds()
            if len(records) > index:
                return records[-1]
            time.sleep(_POLL_S)
        return {}

    def _tick(self, advance: Callable[[], None]) -> None:
        self._alive()
        advance()
        self._screen.count(self._traffic.count())
