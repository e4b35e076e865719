"""What an evaluation suite is, and how the gate finds the configured one. The learner never sees it."""

import importlib
from collections.abc import Sequence
from typing import Protocol

from anyloop.media.store import MediaStore
from protos.anyloop.v1 import types_pb2


class EvalPrompt(Protocol):
    """`modalities` are values of protos.anyloop.v1.Modality; media in `messages` may be inline."""

    @property
    def id(self) -> str: ...
    @property
    def subtask(self) -> str: ...
    @property
    def messages(self) -> Sequence[types_pb2.Message]: ...
    @property
    def modalities(self) -> Sequence[int]: ...


class Verdict(Protocol):
    @property
    def success(self) -> bool: ...
    @property
    def failed(self) -> Sequence[str]: ...


class Suite(Protocol):
    def prompts(self) -> Sequence[EvalPrompt]: ...

    def judge(self, prompt_id: str, message: types_pb2.Message, media: MediaStore) -> Verdict: ...


class SuiteError(Exception):
    """The setting does not lead to a suite."""


def load_suite(name: str) -> Suite:
    """The suite named `module:attribute`; an attribute without `prompts` is called to make one. Raises SuiteError."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise SuiteError(f"set ANYLOOP_GATE_SUITE to module:attribute of an evaluation suite, not {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SuiteError(f"ANYLOOP_GATE_SUITE={name}: {error}") from error
    suite = found if hasattr(found, "prompts") and not isinstance(found, type) else found()
    if not (hasattr(suite, "prompts") and hasattr(suite, "judge")):
        raise SuiteError(f"ANYLOOP_GATE_SUITE={name} has no prompts() and judge()")
    return suite  # type: ignore[no-any-return]
