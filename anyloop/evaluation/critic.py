"""The critique model as a judge: of prompts whose right answer nobody wrote down, and of parts that should agree.

It is asked over gRPC, as the loop asks it, at temperature 0. It knows what it has learned from people, no more: on
prompts unlike theirs its word is worth little, and a version trained on its critiques pleases it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import grpc

from anyloop.approval import RIGHT_PATTERN, RIGHT_TEXT, approves
from anyloop.config import Settings
from anyloop.media.store import MediaStore, to_proto
from anyloop.transport import open_sync_channel
from protos.anyloop.v1 import critique_pb2, critique_pb2_grpc, types_pb2

_ROLES = {
    "system": types_pb2.ROLE_SYSTEM,
    "developer": types_pb2.ROLE_SYSTEM,
    "user": types_pb2.ROLE_USER,
    "assistant": types_pb2.ROLE_ASSISTANT,
}
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class Medium(Protocol):
    """A file of a prompt or an answer."""

    @property
    def mime_type(self) -> str: ...
    @property
    def data(self) -> bytes: ...


Part = str | Medium
Turn = tuple[str, Sequence[Part]]  # role and parts


class CriticError(Exception):
    """The critique service refused or stayed away. `away`: nobody answered."""

    def __init__(self, message: str, *, away: bool) -> None:
        super().__init__(message)
        self.away = away


@dataclass(frozen=True)
class Verdict:
    """`right` when the critique approves; `version` is the critique model that said it."""

    right: bool
    critique: str
    version: str


class Critic:
    """A client of CritiqueService, thread-safe. `media` must be the store that the service reads: files go by
    reference, and one that is there already costs nothing."""

    def __init__(
        self,
        target: str,
        media: MediaStore,
        *,
        right_text: str = RIGHT_TEXT,
        right_pattern: str = RIGHT_PATTERN,
        max_tokens: int = 96,
        timeout_s: float = 60.0,
        attempts: int = 4,
        settings: Settings | None = None,
    ) -> None:
        """`settings` bring the certificates where the service asks for them."""
        self._target, self._media = target, media
        self._right = (right_text, right_pattern)
        self._max_tokens, self._timeout_s, self._attempts = max_tokens, timeout_s, attempts
        self._channel = open_sync_channel(settings or Settings(), target)
        self._stub = critique_pb2_grpc.CritiqueServiceStub(self._channel)

    def __enter__(self) -> "Critic":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()

    def judge(self, turns: Sequence[Turn], response: Sequence[Part]) -> Verdict:
        """What the critique model says of `response` to `turns`. Raises CriticError."""
        request = critique_pb2.CritiqueRequest(
            messages=[self._message(_ROLES[role], parts) for role, parts in turns],
            response=self._message(types_pb2.ROLE_ASSISTANT, response),
            sampling=types_pb2.SamplingParams(temperature=0.0, max_tokens=self._max_tokens, seed=0),
        )
        done = self._finished(request)
        version = done.version_spans[0].version if done.version_spans else ""
        return Verdict(approves(done.critique, *self._right), done.critique, version)

    def agree(self, one: Sequence[Part], other: Sequence[Part]) -> bool:
        """Synergy by the critic: whether it takes `other` for a right answer to `one` (words and a picture of them)."""
        return self.judge([("user", one)], other).right

    def _finished(self, request: critique_pb2.CritiqueRequest) -> critique_pb2.CritiqueResponse.Finished:
        for attempt in range(self._attempts):
            try:
                for event in self._stub.Critique(request, timeout=self._timeout_s):
                    if event.WhichOneof("event") == "finished":
                        finished: critique_pb2.CritiqueResponse.Finished = event.finished
                        return finished
            except grpc.RpcError as error:
                code = error.code()
                if code not in _AGAIN or attempt + 1 == self._attempts:
                    away = code is grpc.StatusCode.UNAVAILABLE
                    said = f"the critique service at {self._target} says {code.name}: {error.details()}"
                    raise CriticError(said, away=away) from error
                time.sleep(0.2 * 2**attempt)
        raise CriticError(f"the critique service at {self._target} ended its answer early", away=True)

    def _message(self, role: types_pb2.Role.ValueType, parts: Sequence[Part]) -> types_pb2.Message:
        message = types_pb2.Message(role=role)
        for part in parts:
            if isinstance(part, str):
                message.parts.add(text=part)
            else:
                message.parts.add().media.CopyFrom(to_proto(self._media.put(part.data, part.mime_type)))
        return message
