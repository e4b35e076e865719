"""One function per contender: starts it, puts the plan's loads on it, and gives figures per mode and concurrency."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anyloop.sequence import Sequencer
from bench.serving.peer import BATCHING, Peer, same_text_twice, transformers_serve
from bench.serving.plan import GREEDY, MODES, Plan
from bench.serving.processes import Watch, Worker, run_client
from bench.serving.prompts import Prompt, prompts_for
from bench.serving.stack import Stack, anyloop_stack
from bench.serving.stats import Answer, figures, percentile

Say = Callable[[str], None]
Points = dict[str, dict[str, Any]]  # by streams


class Bench:
    """Measures one model. `directory` is the model's, `scratch` for logs and homes."""

    def __init__(self, plan: Plan, name: str, directory: Path, scratch: Path, say: Say) -> None:
        self.plan, self.name, self.directory, self.scratch, self._say = plan, name, directory, scratch, say
        self.sequencer = Sequencer.from_pretrained(directory)
        # A model that was trained to end its answers may not: every answer has the same length in every contender.
        end = str(self.sequencer.layout.end)
        self._held_open: dict[str, Any] = {"logit_bias": {end: -100.0}} if name == "tiny-omni" else {}

    # -- the contenders ------------------------------------------------------------------------------------------

    def peer(self, mode: str) -> tuple[Points, dict[str, Any]]:
        """`transformers serve` with that mode's settings as its first request, and whether its sampling froze."""
        with self._peer(mode) as peer:
            points = {}
            for streams in self.plan.streams:
                prompts = self._prompts(mode, streams)
                job = peer.job(_plain(prompts), streams, self.plan.max_tokens, MODES[mode])
                points[str(streams)] = self._point(job, streams, {"server": peer.pid}, mode)
            one = _plain(self._prompts("frozen", 1))
            frozen = mode == "greedy" and same_text_twice(peer.job(one, 1, 24, {"temperature": 1.0}))
        return points, {"same_text_twice_at_temperature_1_after_a_greedy_request": frozen} if mode == "greedy" else {}

    def serial_peer(self) -> Points:
        """The default mode answers one request after another: 8 clients with one request each say it."""
        streams = 8
        with transformers_serve(self.directory, self.scratch / "peer-serial.log", ()) as peer:
            prompts = self._prompts("serial", streams)[:streams]
            self._warm_up(peer.job(_plain(prompts), 2, 8, GREEDY))
            job = peer.job(_plain(prompts), streams, self.plan.max_tokens, GREEDY)
            return {str(streams): self._point(job, streams, {"server": peer.pid}, "serial")}

    def engine(self) -> tuple[dict[str, Points], dict[str, Any]]:
        """The engine in a process of its own; then its memory settings and where its time goes."""
        with Worker("bench.serving.worker", self.scratch / "engine.log") as worker:
            opened = worker.call(op="open", directory=str(self.directory))
            warm = [prompt.tokens for prompt in self._prompts("warm-up", 8)[:8]]
            worker.call(op="load", prompts=warm, streams=8, max_tokens=16, sampling=self._sampling("greedy"))
            modes: dict[str, Points] = {}
            for mode in MODES:
                modes[mode] = {}
                for streams in self.plan.streams:
                    self._say(f"{self.name}: engine in process, {mode}, {streams} streams")
                    modes[mode][str(streams)] = self._engine_point(worker, mode, streams)
            prompts = [prompt.tokens for prompt in self._prompts("profile", self.plan.most)[: self.plan.most]]
            profile = {
                mode: worker.call(
                    op="profile", prompts=prompts, steps=self.plan.profile_steps, sampling=self._sampling(mode)
                )
                for mode in MODES
            }
        return modes, {"profile": profile, **opened}

    def floors(self) -> dict[str, Any]:
        """Tokens per second of the engine's decode steps, of bare forward passes and of the weight matmuls alone, taken
        in turn, per batch size."""
        found = {}
        with Worker("bench.serving.worker", self.scratch / "floors.log") as worker:
            worker.call(op="open", directory=str(self.directory))
            for batch in self.plan.streams:
                self._say(f"{self.name}: floors, batch {batch}")
                found[str(batch)] = worker.call(
                    op="beside_the_floors",
                    directory=str(self.directory),
                    prompts=[prompt.tokens for prompt in self._prompts("floors", batch)[:batch]],
                    steps=self.plan.max_tokens,
                    samplings={mode: self._sampling(mode) for mode in MODES},
                )
        return found

    def stack(self) -> tuple[dict[str, Points], dict[str, Points], dict[str, Any]]:
        """One start of the product: its Triton asked directly, then all of it; and what the gateway adds."""
        self._say(f"{self.name}: starting the stack")
        with anyloop_stack(self.directory, self.scratch / "home") as stack:
            self._warm_up(stack.job("sse", _plain(self._prompts("warm-up", 8)), 8, 16, self._sampling("greedy")))
            triton = {mode: self._stack_points(stack, "triton", mode) for mode in MODES}
            whole = {mode: self._stack_points(stack, "sse", mode) for mode in MODES}
            gateway = self._gateway(stack)
            one = stack.job("sse", _plain(self._prompts("frozen", 1)), 1, 24, self._sampling("sampled"))
            frozen = same_text_twice(one)
        checks = {"same_text_twice_at_temperature_1_after_a_greedy_request": frozen}
        return triton, whole, {"gateway": gateway, "checks": checks}

    # -- one point -----------------------------------------------------------------------------------------------

    def _stack_points(self, stack: Stack, kind: str, mode: str) -> Points:
        points = {}
        for streams in self.plan.streams:
            prompts = self._prompts(f"{mode}, {kind}", streams) if kind == "triton" else self._prompts(mode, streams)
            job = stack.job(kind, _plain(prompts), streams, self.plan.max_tokens, self._sampling(mode))
            roots = {"triton": stack.pids["triton"]} if kind == "triton" else stack.pids
            points[str(streams)] = self._point(job, streams, roots, mode)
        return points

    def _point(self, job: dict[str, Any], streams: int, roots: dict[str, int], mode: str) -> dict[str, Any]:
        self._say(f"{self.name}: {job['kind']} on {job['address']}, {mode}, {streams} streams")
        with Watch(roots) as watch:
            answers = run_client(job)
        return _point_of(answers, streams, watch)

    def _engine_point(self, worker: Worker, mode: str, streams: int) -> dict[str, Any]:
        prompts = [prompt.tokens for prompt in self._prompts(mode, streams)]
        with Watch({"engine": worker.pid}) as watch:
            found = worker.call(
                op="load",
                prompts=prompts,
                streams=streams,
                max_tokens=self.plan.max_tokens,
                sampling=self._sampling(mode),
            )
        return _point_of([Answer(**answer) for answer in found], streams, watch)

    def _gateway(self, stack: Stack) -> dict[str, Any]:
        """Times to first token with and without the gateway: eight clients ask the one, then the other, in rounds."""
        streams = 8
        found: dict[str, list[float]] = {"policy": [], "sse": []}
        for turn in range(self.plan.gateway_rounds):
            prompts = _plain(prompts_for(self.sequencer, 2 * streams * self.plan.gateway_requests, f"gateway {turn}"))
            for kind, asked in (("policy", prompts[::2]), ("sse", prompts[1::2])):
                self._say(f"{self.name}: what the gateway adds, round {turn + 1}, {kind}")
                answers = run_client(stack.job(kind, asked, streams, self.plan.max_tokens, self._sampling("greedy")))
                found[kind] += [answer.arrivals[0] - answer.asked for answer in answers if answer.arrivals]
        return {
            "streams": streams,
            "answers": len(found["policy"]) + len(found["sse"]),
            "policy_ttft_p50": percentile(found["policy"], 0.5),
            "gateway_ttft_p50": percentile(found["sse"], 0.5),
        }

    # -- what is asked -------------------------------------------------------------------------------------------

    @contextmanager
    def _peer(self, mode: str) -> Iterator[Peer]:
        self._say(f"{self.name}: starting transformers serve ({mode})")
        with transformers_serve(self.directory, self.scratch / f"peer-{mode}.log", BATCHING) as peer:
            self._warm_up(peer.job(_plain(self._prompts("warm-up", 8)), 8, 16, MODES[mode]))
            yield peer

    def _warm_up(self, job: dict[str, Any]) -> None:
        failed = [answer.error for answer in run_client(job) if answer.error]
        if failed:
            self._say(f"{self.name}: the warm-up failed: {failed[0]}")

    def _sampling(self, mode: str) -> dict[str, Any]:
        return {**MODES[mode], **self._held_open}

    def _prompts(self, purpose: str, streams: int) -> list[Prompt]:
        return prompts_for(self.sequencer, self.plan.prompts(streams), f"{purpose} {streams}")


def _point_of(answers: list[Answer], streams: int, watch: Watch) -> dict[str, Any]:
    found = figures(answers, streams)
    per_thousand = {name: seconds / found.tokens * 1e3 for name, seconds in watch.cpu_seconds.items() if found.tokens}
    return {
        **found.to_json(),
        "peak_memory_bytes": watch.peak_bytes,
        "cpu_seconds_per_1000_tokens": per_thousand,
        "texts": [answer.text for answer in answers],
    }


def _plain(prompts: list[Prompt]) -> list[dict[str, Any]]:
    return [asdict(prompt) for prompt in prompts]
