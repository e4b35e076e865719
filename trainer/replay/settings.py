"""The trainer's settings in a replay: the live loop's, where the difference between then and now plays no part."""

import difflib
import math
import os
from collections.abc import Mapping

from pydantic import ValidationError

from trainer.config import TrainerSettings

_LONG_S = 7 * 86400.0
# All that is replayed is old, and the versions that answered are no ancestors of the new lineage: that alone must throw
# nothing away. Nobody waits for a replay, so neither does it give up on a slow gate.
_DEFAULTS: dict[str, object] = {
    "max_versions_behind": 1_000_000,
    "staleness_decay": 1.0,
    "retention_days": 36_500.0,
    "dedupe_days": 36_500.0,
    "gate_timeout_s": _LONG_S,
    "swap_timeout_s": 600.0,
    "request_timeout_s": 600.0,
    "keep_checkpoints": 1_000,
}
_FIXED = {"algorithm": "--algorithm"}


class SettingError(Exception):
    """A setting that the trainer does not have, or a value that it does not take; the message says which it has."""


def effective(
    algorithm: str, chosen: Mapping[str, str], *, feedback: int | None = None, rounds: int = 1
) -> TrainerSettings:
    """The settings of a replay. `feedback` events are spread evenly over `rounds`. Raises SettingError."""
    fields = TrainerSettings.model_fields
    for name in chosen:
        if name in _FIXED:
            raise SettingError(f"{name} is given by {_FIXED[name]}")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3, cutoff=0.5) or sorted(fields)
            raise SettingError(f"the trainer has no setting {name!r}: did you mean {', '.join(near)}?")
    values = {name: value for name, value in _DEFAULTS.items() if name in fields}
    if feedback:
        values["max_feedback"] = math.ceil(feedback / rounds)
    try:
        return TrainerSettings(**(values | dict(chosen) | {"algorithm": algorithm}))  # type: ignore[arg-type]
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise SettingError(said) from error


def export(settings: TrainerSettings) -> None:
    """Makes these the settings of every trainer that this process opens from now on."""
    for name, value in settings.model_dump(exclude_none=True).items():
        os.environ[f"ANYLOOP_TRAINER_{name.upper()}"] = str(value)
