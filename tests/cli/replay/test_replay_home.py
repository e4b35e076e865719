"""The folder a replay works in: filled from the live loop, which notices nothing."""

import hashlib
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.replay.home import prepare, private_settings, starting_versions, version_at
from anyloop.cli.replay.plan import Plan
from anyloop.config import Settings
from anyloop.log import CHECKPOINTS, FEEDBACK, RESPONSES, Event, EventLog, open_log
from anyloop.media.store import MediaStore, to_proto
from anyloop.registry import Registry, announce, serving_version
from anyloop.registry.copies import copy_version
from protos.anyloop.v1 import types_pb2
from tests.models.random_omni import build_random_omni
from tests.trainer.events import feedback, response

NEVER = timedelta(days=7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("model"))


@pytest.fixture
def live(tmp_path: Path, model: Path) -> Settings:
    """A home whose policy went 0 → 1 → 2, all promoted, with a critique base, and no feedback yet."""
    settings = Settings(_env_file=None, home=tmp_path / "live", model_dir=model)  # type: ignore[call-arg]
    settings.home.mkdir()
    registry = Registry(settings.effective_registry_dir)
    registry.import_base("critique", model)
    registry.import_base("policy", model)
    for parent in ("policy-000000", "policy-000001"):
        metrics = {"feedback_ids": [f"of {parent}"]}
        copy_version(registry, "policy-000000", registry, lineage="policy", parent=parent, metrics=metrics)
    return settings


@pytest.fixture
def source(live: Settings) -> Iterator[EventLog]:
    with open_log(live.effective_log_url) as log:
        log.ensure_topics()
        yield log


def say(log: EventLog, name: str, to: str, **said: object) -> None:
    event = feedback(name, to, **said)  # type: ignore[arg-type]
    log.append(FEEDBACK, Event.wrap(event, key=to, source="test", id=name))


def converse(log: EventLog, *names: str) -> None:
    for name in names:
        log.append(RESPONSES, Event.wrap(response(name), key=name, source="test", id=name))
        say(log, f"f-{name}", name)


def plan(source: EventLog, **changes: object) -> Plan:
    ends = {str(part): end for part, end in source.end_offsets(FEEDBACK).items()}
    options: dict[str, object] = {
        "lineage": "lab",
        "algorithm": "dpo",
        "rounds": 1,
        "log": "",
        "base": "policy-000000",
        "critique": "critique-000000",
        "gate_suite": "",
        "begin": {FEEDBACK: dict.fromkeys(ends, 0)},
        "end": {FEEDBACK: ends, RESPONSES: {str(p): end for p, end in source.end_offsets(RESPONSES).items()}},
        "settings": {},
        "asked": {},
    }
    return Plan(**(options | changes))  # type: ignore[arg-type]


def laid_out(live: Settings, source: EventLog, **changes: object) -> tuple[Settings, Plan]:
    private = private_settings(live, live.home / "replays" / "lab")
    made = plan(source, **changes)
    made.save(private.home)
    prepare(live, private, made, source, NEVER, lambda done, total: None)
    return private, made


def contents(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "replays" not in path.parts)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_replay_begins_from_the_base_in_a_log_and_registry_of_its_own(live: Settings, source: EventLog) -> None:
    converse(source, "a", "b")
    private, made = laid_out(live, source, base="policy-000001")
    assert Plan.load(private.home) == made
    assert (made.state, made.counts["usable"]) == ("ready", 2)
    own = Registry(private.effective_registry_dir)
    assert own.verify("policy-000001").metrics == {}, "its feedback is not used up in the new lineage"
    assert own.manifest("policy-000001").base == "policy-000000"
    with open_log(private.effective_log_url) as log:
        assert serving_version(log, "policy") == "policy-000001"
        assert serving_version(log, "critique") == "critique-000000"
        assert len(list(log.read(FEEDBACK))) == len(list(log.read(RESPONSES))) == 2


def test_no_version_of_the_replay_is_named_as_one_that_answered(live: Settings, source: EventLog) -> None:
    converse(source, "a")
    private, _ = laid_out(live, source, base="policy-000000")
    own = Registry(private.effective_registry_dir)
    made = copy_version(own, "policy-000000", own, lineage="policy", parent="policy-000000")
    assert made.version == "policy-000003"


def test_the_live_loop_is_as_it_was(live: Settings, source: EventLog) -> None:
    converse(source, "a", "b")
    ends = {topic: source.end_offsets(topic) for topic in (RESPONSES, FEEDBACK, CHECKPOINTS)}
    before = contents(live.effective_registry_dir)
    laid_out(live, source)
    assert {topic: source.end_offsets(topic) for topic in ends} == ends
    assert contents(live.effective_registry_dir) == before


def test_a_killed_preparation_is_made_again_from_the_start(live: Settings, source: EventLog) -> None:
    converse(source, "a", "b", "c")
    private = private_settings(live, live.home / "replays" / "lab")
    made = plan(source)

    def killed(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(live, private, made, source, NEVER, killed)
    prepare(live, private, made, source, NEVER, lambda done, total: None)
    with open_log(private.effective_log_url) as log:
        assert len(list(log.read(FEEDBACK))) == len(list(log.read(RESPONSES))) == 3


def test_a_range_without_anything_to_join_is_refused(live: Settings, source: EventLog) -> None:
    say(source, "f", "nowhere")
    with pytest.raises(CommandError, match="nothing to learn from: 1 feedback events") as refused:
        laid_out(live, source)
    assert refused.value.code == ExitCode.NOT_FOUND


def test_media_of_refinements_come_along_and_missing_ones_are_counted(live: Settings, source: EventLog) -> None:
    stored = MediaStore(live.effective_media_url).put(b"\x89PNG picture", "image/png")
    gone = types_pb2.MediaRef(sha256="0" * 64, mime_type="image/png", modality=types_pb2.MODALITY_IMAGE)
    parts = [types_pb2.ContentPart(media=reference) for reference in (to_proto(stored), gone)]
    source.append(RESPONSES, Event.wrap(response("a"), key="a", source="test", id="a"))
    say(source, "f", "a", refinement=parts)
    private, made = laid_out(live, source)
    assert MediaStore(private.effective_media_url).get(stored.sha256) == b"\x89PNG picture"
    assert made.counts["media_missing"] == 1


def test_the_weights_that_served_when_the_first_feedback_came_are_the_start(live: Settings, source: EventLog) -> None:
    registry = Registry(live.effective_registry_dir)
    announce(source, "policy", "policy-000001", "promoted")
    announce(source, "critique", "critique-000000", "promoted")
    say(source, "f", "a", created=time.time_ns() // 1_000_000)
    time.sleep(0.002)
    announce(source, "policy", "policy-000002", "promoted")
    made = plan(source)
    begin, end = ({int(p): at for p, at in offsets[FEEDBACK].items()} for offsets in (made.begin, made.end))
    policy, critic = starting_versions(registry, source, begin, end, "")
    assert (policy.version, critic.version) == ("policy-000001", "critique-000000")
    assert starting_versions(registry, source, begin, end, "policy-000002")[0].version == "policy-000002"
    registry.delete("policy-000001")
    with pytest.raises(CommandError, match=r"which served .* choose a start with --base \(policy-000000, policy-000"):
        starting_versions(registry, source, begin, end, "")
    with pytest.raises(CommandError, match="critique model"):
        starting_versions(registry, source, begin, end, "critique-000000")


def test_before_the_first_promotion_nothing_served(source: EventLog) -> None:
    announce(source, "policy", "policy-000000", "promoted")
    assert version_at(source, "policy", 0) is None


def test_what_the_base_has_learned_before_is_counted(live: Settings, source: EventLog) -> None:
    source.append(RESPONSES, Event.wrap(response("a"), key="a", source="test", id="a"))
    say(source, "of policy-000000", "a")
    assert laid_out(live, source, base="policy-000002")[1].counts["known_to_base"] == 1


def test_another_model_than_the_registrys_is_refused(
    live: Settings, source: EventLog, tmp_path_factory: pytest.TempPathFactory
) -> None:
    converse(source, "a")
    other = build_random_omni(tmp_path_factory.mktemp("other"), seed=5)
    with pytest.raises(CommandError, match="set ANYLOOP_MODEL_DIR"):
        laid_out(live.model_copy(update={"model_dir": other}), source)
