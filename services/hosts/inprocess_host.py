"""Runs the model programs on threads of this process: for tests, and where Triton cannot run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.hosts.interface import HostError, ModelHost
from services.hosts.program import Program, open_program

if TYPE_CHECKING:
    from anyloop.config import Settings


class InprocessHost(ModelHost):
    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = dict(programs)
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Settings, models: Sequence[str]) -> InprocessHost:
        return cls({model: open_program(model, settings) for model in models})

    async def ready(self) -> bool:
        return not self._closed

    async def stream(
        self,
        model: str,
        request: dict[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncGenerator[dict[str, Any], None]:
        program = self._programs.get(model)
        if program is None:
            raise HostError("NOT_FOUND", f"model {model!r} is not open here (open: {', '.join(self._programs)})")
        if self._closed:
            raise HostError("UNAVAILABLE", "the model host is closed")
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        answers: asyncio.Queue[tuple[dict[str, Any], bool]] = asyncio.Queue()

        def send(payload: dict[str, Any], final: bool) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever listened
                loop.call_soon_threadsafe(answers.put_nowait, (payload, final))

        cancel = program.submit(request, send)
        final = False
        try:
            while not final:
                async with asyncio.timeout_at(deadline):
                    payload, final = await answers.get()
                if "error" in payload:
                    raise HostError.from_payload(payload["error"])
                yield payload
        except TimeoutError as error:
            raise HostError("DEADLINE_EXCEEDED", f"{model} did not answer within {timeout} s") from error
        finally:
            if not final:
                cancel()

    async def call(
        self,
        model: str,
        request: dict[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        async with contextlib.aclosing(self.stream(model, request, timeout=timeout)) as answers:
            async for answer in answers:
                return answer
        raise HostError("INTERNAL", f"{model} gave no answer")

    async def close(self) -> None:
        self._closed = True
        programs, self._programs = self._programs, {}
        for program in programs.values():
            await asyncio.to_thread(program.close)
