"""The replay's own home folder: a log with the chosen records, and a registry with what it begins from.

Nothing in it is shared with the live loop but the bytes of checkpoints, which no registry ever writes into.
"""

import fcntl
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.replay import selection
from anyloop.cli.replay.plan import Plan
from anyloop.config import Settings
from anyloop.log import FEEDBACK, RESPONSES, EventLog, open_log
from anyloop.media.store import MediaNotFound, MediaStore
from anyloop.registry import CheckpointError, Manifest, Registry, announce, checkpoint_events, serving_version
from anyloop.registry.announce import PROMOTED
from anyloop.registry.copies import ancestry, copy_version

Step = Callable[[int, int], None]  # records read so far, records to read


def folder_of(settings: Settings, lineage: str) -> Path:
    return settings.home.absolute() / "replays" / lineage


@contextmanager
def only_one(settings: Settings, lineage: str) -> Iterator[None]:
    """Holds the lineage for this process. Raises CommandError when another one works on it."""
    folder = folder_of(settings, lineage).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{lineage}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandError(
                f"another command works on the replay into {lineage}: wait until it has ended, or stop it",
                ExitCode.REFUSED,
            ) from error
        yield


def private_settings(settings: Settings, folder: Path) -> Settings:
    """The same machine with everything it writes under `folder`, and nothing of the live loop's addresses."""
    return settings.model_copy(
        update={
            "home": folder,
            "log_url": "",
            "media_url": "",
            "registry_dir": None,
            "host": "inprocess",
            "bind": "127.0.0.1",
            "metrics_port": 0,
        }
    )


def prepare(live: Settings, private: Settings, plan: Plan, source: EventLog, lookback: timedelta, step: Step) -> None:
    """Fills log and registry and makes the plan `ready`. Killed in between, it begins again at the next call.

    Raises CommandError when the range holds nothing to learn from.
    """
    for path in private.home.glob("log.db*"):
        path.unlink()
    with open_log(private.effective_log_url) as target:
        target.ensure_topics()
        selected = _fill(source, target, plan, lookback, step)
        plan.counts = {
            "feedback": selected.feedback,
            "distinct": len(selected.events),
            "unreadable": selected.unreadable,
            "responses": selected.responses,
            "usable": selected.usable(),
            "known_to_base": len(_learned(live, plan.base) & selected.events.keys()),
        }
        if not plan.counts["usable"]:
            raise CommandError(
                f"nothing to learn from: {selected.feedback} feedback events in the range, and the responses of none "
                "of them were found. Widen the range with --from, or the search for responses with --lookback",
                ExitCode.NOT_FOUND,
            )
        plan.counts["media_missing"] = _copy_media(live, private, selected.media)
        _found(live, private, plan, target)
    plan.state = "ready"
    plan.save(private.home)


def version_at(log: EventLog, lineage: str, time_unix_ms: int) -> str | None:
    """The version that served at a moment, by the announcements that the log still holds."""
    promoted = [
        message.version
        for _, message in checkpoint_events(log, lineage)
        if message.state == PROMOTED and message.created_unix_ms <= time_unix_ms
    ]
    return promoted[-1] if promoted else None


def starting_versions(
    registry: Registry, source: EventLog, begin: dict[int, int], end: dict[int, int], chosen: str
) -> tuple[Manifest, Manifest]:
    """The policy and the critique model that a replay begins from: those that served when its first feedback came.

    Raises CommandError when the policy is gone from the registry, or `chosen` is not there. A critique model that is
    gone gives way to the base, which knows nothing of the feedback either.
    """
    since = _first_time(source, begin, end)
    name = chosen or version_at(source, "policy", since) or "policy-000000"
    try:
        policy = registry.manifest(name)
    except CheckpointError as error:
        there = ", ".join(registry.versions("policy")) or "none: nothing has served from this registry yet"
        served = "" if chosen else ", which served when the range begins,"
        raise CommandError(
            f"{name}{served} is not in the registry: choose a start with --base ({there})", ExitCode.NOT_FOUND
        ) from error
    if policy.lineage == "critique":
        raise CommandError(f"{name} is a critique model: --base names a policy version", ExitCode.USAGE)
    critic = version_at(source, "critique", since)
    try:
        return policy, registry.manifest(critic or "critique-000000")
    except CheckpointError:
        return policy, registry.manifest("critique-000000")


def _fill(source: EventLog, target: EventLog, plan: Plan, lookback: timedelta, step: Step) -> selection.Selected:
    begin, end = _numbers(plan.begin[FEEDBACK]), _numbers(plan.end[FEEDBACK])
    ends = _numbers(plan.end[RESPONSES])
    done, total = 0, sum(end[part] - begin[part] for part in end)

    def read() -> None:
        nonlocal done
        done += 1
        step(done, total)

    selected = selection.copy_feedback(source, target, begin, end, read)
    first = selection.responses_from(source, selected, lookback)
    plan.begin[RESPONSES] = {str(part): offset for part, offset in first.items()}
    total = done + sum(max(0, ends[part] - first[part]) for part in ends)
    selection.copy_responses(source, target, selected, first, ends, read)
    return selected


def _learned(live: Settings, version: str) -> set[str]:
    """The feedback that a live version and its ancestors learned from."""
    line = ancestry(Registry(live.effective_registry_dir), version)
    return {name for one in line for name in one.metrics.get("feedback_ids", ())}


def _copy_media(live: Settings, private: Settings, names: set[str]) -> int:
    """Media of refinements into the replay's own store. Returns how many are no longer there."""
    if not names:
        return 0
    source, target = MediaStore(live.effective_media_url), MediaStore(private.effective_media_url)
    missing = 0
    for name in sorted(names):
        try:
            target.put(source.get(name), source.describe(name).mime_type)
        except MediaNotFound:
            missing += 1
    return missing


def _found(live: Settings, private: Settings, plan: Plan, log: EventLog) -> None:
    """What the replay begins from, in its registry and announced in its log, and nowhere else."""
    source, target = Registry(live.effective_registry_dir), Registry(private.effective_registry_dir)
    try:
        for lineage, version in (("policy", plan.base), ("critique", plan.critique)):
            base = target.import_base(lineage, live.model_dir)
            start = copied(source, version, target, lineage, parent=base.version)
            if serving_version(log, lineage) is None:
                reason = "the replay begins here"
                announce(
                    log, lineage, version, PROMOTED, digest=start.weights_digest, reason=reason, decided_by="replay"
                )
        _skip_numbers(source, target, plan.base)
    except CheckpointError as error:
        raise CommandError(f"the replay cannot begin from {plan.base} and {plan.critique}: {error}") from error
    _copy_evaluations(live.home / "gate", private.home / "gate", plan.base)


def copied(source: Registry, version: str, target: Registry, lineage: str, parent: str) -> Manifest:
    """`version` in another registry under the same name, copied unless it is there already. Raises CheckpointError
    when what is there has other weights."""
    theirs = source.manifest(version)
    try:
        ours = target.manifest(version)
    except CheckpointError:
        return copy_version(source, version, target, lineage=lineage, parent=parent, name=version)
    if ours.weights_digest != theirs.weights_digest:
        raise CheckpointError(
            f"{version} of the registry has other weights than the model directory: set ANYLOOP_MODEL_DIR to the "
            "model that the registry began with"
        )
    return ours


def _skip_numbers(source: Registry, target: Registry, base: str) -> None:
    """Lets the replay's own numbers follow the newest live one: answers name the live version that gave them, and no
    version of the replay may be taken for it."""
    numbers = [int(name[1]) for name in map(re.compile(r"policy-(\d+)").fullmatch, source.versions("policy")) if name]
    newest = f"policy-{max(numbers, default=0):06d}"
    if newest not in ("policy-000000", *target.versions("policy")):
        try:
            copy_version(source, base, target, lineage="policy", parent=base, name=newest)
            target.delete(newest)
        except CheckpointError:
            pass  # done before this was interrupted


def _copy_evaluations(source: Path, target: Path, version: str) -> None:
    """The live gate's evaluation of the base serves the replay's gate too, where both ask the same questions."""
    target.mkdir(parents=True, exist_ok=True)
    if (source / f"{version}.json").exists():
        shutil.copyfile(source / f"{version}.json", target / f"{version}.json")


def _first_time(log: EventLog, begin: dict[int, int], end: dict[int, int]) -> int:
    """When the first feedback of the range came, Unix milliseconds."""
    first = [
        record
        for part, offset in begin.items()
        if offset < end[part]
        for record in log.read(FEEDBACK, partition=part, offset=offset, limit=1)
    ]
    if not first:
        raise CommandError("there is no feedback in this range: see `anyloop log read feedback`", ExitCode.NOT_FOUND)
    return min(map(selection.said_at, first))


def _numbers(offsets: dict[str, int]) -> dict[int, int]:
    return {int(part): offset for part, offset in offsets.items()}
