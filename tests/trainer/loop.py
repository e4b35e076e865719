"""A home folder with a log, a registry and scripted services, and the learner and the gate that run on it."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from anyloop.config import Settings
from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, open_log
from anyloop.media.store import MediaStore
from anyloop.registry import Registry, announce, checkpoint_events
from anyloop.sequence import Sequencer
from protos.anyloop.v1 import events_pb2, types_pb2
from tests.trainer.events import feedback, spoken
from tests.trainer.fake_services import GOOD, FakeServices
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.gate.config import GateSettings
from trainer.gate.service import Gate
from trainer.intake import Intake
from trainer.join_store import JoinStore
from trainer.journal import Journal
from trainer.learner import Learner
from trainer.rounds import RoundRunner

FAST = {
    "critique_held_out": 0.2,
    "critique_epochs": 1,
    "critique_lr": 1e-3,
    "min_pairs": 2,
    "gate_timeout_s": 30.0,
    "retry_s": 0.01,
    "ppo_iterations": 2,
    "ppo_rollouts": 8,
    "ppo_batch": 4,
    "ppo_epochs": 1,
    "reward_epochs": 1,
}


@dataclass(frozen=True)
class Question:
    id: str
    subtask: str = "T2T"
    messages: tuple = (types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text="Draw.")]),)
    modalities: tuple = (types_pb2.MODALITY_TEXT,)


@dataclass(frozen=True)
class Judged:
    success: bool
    failed: tuple = ()


class TextSuite:
    """Right is what the scripted critique service calls right."""

    def prompts(self) -> list[Question]:
        return [Question(f"q{i}") for i in range(6)]

    def judge(self, prompt_id: str, message: types_pb2.Message, media: MediaStore) -> Judged:
        right = message.parts[0].text == GOOD
        return Judged(right, () if right else ("text colour",))


@dataclass
class Loop:
    """A home folder with a log and a registry, and what runs on it."""

    home: Path
    settings: Settings
    services: FakeServices
    log: EventLog
    registry: Registry
    sequencer: Sequencer
    process: ExitStack = field(default_factory=ExitStack)
    sent: int = 0

    def say(self, count: int, critique: str = "It should be a blue circle.", temperature: float = 1.0) -> None:
        """`count` responses to different prompts, each with a critique."""
        for number in range(self.sent, self.sent + count):
            name = f"r{number}"
            event = spoken(self.sequencer, name, f"Draw {number}.", "red square")
            event.sampling.temperature = temperature
            said = feedback(f"f{number}", name, critique=critique, created=2000 + number)
            self.log.append(RESPONSES, Event.wrap(event, key=name, source="test", id=name))
            self.log.append(FEEDBACK, Event.wrap(said, key=name, source="test", id=said.feedback_id))
        self.sent += count

    def learner(self, home: str = "trainer", **more: object) -> Learner:
        """A learner as a new process would open it; the one before is gone with its handles."""
        self.process.close()
        options = TrainerSettings(**(FAST | more))  # type: ignore[arg-type]
        store = JoinStore(self.home / home / "state.db", options.late_after_s)
        journal = Journal(self.home / home / "rounds.jsonl")
        runner = RoundRunner(self.settings, options, self.log, self.registry, store, journal, World())
        intake = Intake(self.log, store)
        self.process.callback(store.close)
        self.process.callback(intake.close)
        return Learner(intake, store, runner, self.registry, journal, options)

    def gate(self, **more: object) -> Gate:
        media = MediaStore(self.settings.effective_media_url)
        options = GateSettings(suite="test", **more)  # type: ignore[arg-type]
        return Gate(self.settings, options, self.log, self.registry, media, TextSuite())

    def with_gate(self, learner: Learner) -> bool:
        """Runs one round with the gate beside it."""
        stop = threading.Event()
        thread = threading.Thread(target=self.gate().run, args=(stop,))
        thread.start()
        try:
            return learner.once()
        finally:
            stop.set()
            thread.join(30)

    def journal(self, event: str, home: str = "trainer") -> list[dict]:
        lines = (self.home / home / "rounds.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]


@contextmanager
def open_sqlite_loop(home: Path, checkpoint: Path, sequencer: Sequencer) -> Iterator[Loop]:
    """On an embedded log of its own."""
    with open_log(f"sqlite:///{home}/log.db") as log:
        log.ensure_topics()
        with open_loop(home, checkpoint, sequencer, log) as opened:
            yield opened


@contextmanager
def open_loop(home: Path, checkpoint: Path, sequencer: Sequencer, log: EventLog) -> Iterator[Loop]:
    """A fresh registry with the base in service, beside an open and empty log."""
    with ExitStack() as stack:
        registry = Registry(home / "registry")
        for lineage in ("policy", "critique"):
            manifest = registry.import_base(lineage, checkpoint)
            announce(log, lineage, manifest.version, "promoted", digest=manifest.weights_digest)
        services = stack.enter_context(FakeServices(sequencer, log, registry))
        settings = services.settings(home, checkpoint)
        loop = Loop(home, settings, services, log, registry, sequencer)
        stack.callback(lambda: loop.process.close())
        yield loop


def states(log: EventLog, lineage: str) -> list[tuple[str, str]]:
    name = events_pb2.CheckpointEvent.State.Name
    return [(event.version, name(event.state).removeprefix("STATE_")) for _, event in checkpoint_events(log, lineage)]
