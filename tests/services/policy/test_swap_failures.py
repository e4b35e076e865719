"""What goes wrong around a swap, with requests running: the old weights go on, nothing is kept, the next swap works."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from anyloop.config import Settings
from anyloop.sequence import SequenceLayout
from services.hosts.inprocess_host import InprocessHost
from services.hosts.interface import HostError
from services.policy import weights_ops
from services.policy.engine import Engine, tensor_files
from services.policy.engine.budget import ReadBudget
from services.policy.engine.forward.fused import FusedForward
from services.policy.program import PolicyProgram

GREEDY = {"temperature": 0.0, "max_tokens": 60}


class Serving:
    """A program with `v0` active, and greedy requests of it that go on until the block ends."""

    def __init__(self, host: InprocessHost, paths: dict[str, Path]) -> None:
        self.host, self.paths = host, paths

    async def load(self, version: str, path: Path | None = None, **more: Any) -> dict[str, Any]:
        where = str(path or self.paths[version])
        return await self.host.call("policy", {"op": "load", "version": version, "path": where, **more})

    async def activate(self, version: str, mode: str = "finish") -> dict[str, Any]:
        return await self.host.call("policy", {"op": "activate", "version": version, "mode": mode})

    async def status(self) -> dict[str, Any]:
        return await self.host.call("policy", {"op": "status"})

    async def resident(self) -> list[str]:
        return [weights["version"] for weights in (await self.status())["weights"]]

    async def answer(self, prompt: list[int], version: str = "") -> tuple[list[int], list[list[Any]]]:
        request = {"op": "generate", "prompt": prompt, "modalities": ["text"], "sampling": GREEDY, "version": version}
        tokens: list[int] = []
        last: dict[str, Any] = {}
        async for last in self.host.stream("policy", request):
            tokens.extend(int(token) for token in last.get("tokens", []))
        return tokens, last["version_spans"]

    @asynccontextmanager
    async def under_load(self, clients: int = 4) -> AsyncIterator[list[tuple[list[int], list[list[Any]]]]]:
        """Clients ask again and again inside the block; the list holds their answers when it is left."""
        answers: list[tuple[list[int], list[list[Any]]]] = []
        answered, stopping = asyncio.Event(), False

        async def client(number: int) -> None:
            while not stopping:
                answers.append(await self.answer([1, 2, number]))
                answered.set()

        tasks = [asyncio.create_task(client(number)) for number in range(clients)]
        try:
            await answered.wait()
            yield answers
        finally:
            stopping = True
            await asyncio.gather(*tasks)


@pytest.fixture
async def serving(random_omni: Path, other_omni: Path) -> AsyncIterator[Serving]:
    settings = Settings(engine_slots=8, engine_max_tokens=128, engine_queue=64, engine_resident_versions=3)
    host = InprocessHost({"policy": PolicyProgram(random_omni, settings)})
    paths = {f"v{number}": (other_omni if number % 2 else random_omni) for number in range(8)}
    one = Serving(host, paths)
    await one.load("v0")
    await one.activate("v0")
    yield one
    await host.close()


async def refusal(call: Any) -> HostError:
    with pytest.raises(HostError) as refused:
        await call
    return refused.value


# -- one swap during another -----------------------------------------------------------------------------------------


async def test_a_swap_during_a_swap_is_queued(serving: Serving) -> None:
    async def swap(version: str) -> str:
        await serving.load(version)
        return str((await serving.activate(version))["previous"])

    async with serving.under_load() as answers:
        previous = await asyncio.gather(swap("v1"), swap("v2"))
    assert sorted(previous) == ["v0", "v1"]  # each found the other's work, or what was there before, complete
    assert (await serving.status())["serving_version"] == "v2"
    assert await serving.resident() == ["v2"]
    assert all(len(spans) == 1 and tokens for tokens, spans in answers)


async def test_finish_gives_each_answer_by_one_version_whole(serving: Serving) -> None:
    by_version = {}
    await serving.load("v1")
    for version in ("v0", "v1"):
        by_version[version] = [(await serving.answer([1, 2, number], version))[0] for number in range(4)]
    async with serving.under_load() as answers:
        for version in ("v1", "v2", "v3", "v4"):
            await serving.load(version)
            await serving.activate(version)
            await asyncio.sleep(0.05)
    assert len(answers) > 4
    for tokens, ((version, _, end),) in answers:
        assert end == len(tokens)
        assert tokens in by_version["v1" if version in ("v1", "v3") else "v0"]


@pytest.mark.parametrize("reads", [1, 4])
async def test_what_a_recompute_reads_anew_counts_in_its_gap(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    def slow_read(forward: FusedForward, *args: Any) -> None:
        time.sleep(0.05)
        read(forward, *args)

    read = FusedForward.read
    await serving.load("v1")
    layout = SequenceLayout.load(serving.paths["v0"])
    sampling = {"temperature": 0.0, "max_tokens": 90, "logit_bias": {layout.end: -100.0}}
    request = {"op": "generate", "prompt": [1] * 30, "modalities": ["text"], "sampling": sampling}
    stream = serving.host.stream("policy", request)
    await anext(stream)
    with monkeypatch.context() as patch:
        patch.setattr(ReadBudget, "tokens", lambda *_, **__: 30 // reads)  # per step: reading goes on through several
        patch.setattr(FusedForward, "read", slow_read)
        done = await serving.activate("v1", "recompute")
    versions = [answer["version_spans"] async for answer in stream if "version_spans" in answer]
    assert [version for version, _, _ in versions[0]] == ["v0", "v1"]
    assert 0.05 * reads <= done["longest_step_gap_seconds"] < 4


# -- what cannot be loaded -------------------------------------------------------------------------------------------


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.Tensor]]:
    """The memory that loads take for tensor files, to see that it goes back."""
    taken: list[weakref.ref[torch.Tensor]] = []

    class Recording:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def empty(*sizes: int, **kind: Any) -> torch.Tensor:
            memory = torch.empty(*sizes, **kind)
            taken.append(weakref.ref(memory))
            return memory

    monkeypatch.setattr(tensor_files, "torch", Recording())
    return taken


def cut_short(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def not_a_number(path: Path) -> None:
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "words"), [(cut_short, "header of model.safetensors"), (not_a_number, "NaN or infinity")]
)
async def test_damaged_tensors_are_refused_and_their_memory_given_back(
    serving: Serving,
    tmp_path: Path,
    buffers: list[weakref.ref[torch.Tensor]],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    path = copy_of(serving.paths["v1"], tmp_path)
    damage(path)
    async with serving.under_load() as answers:
        error = await refusal(serving.load("v1", path))
    assert (error.code, words in error.message) == ("FAILED_PRECONDITION", True)
    await nothing_is_left_of_v1(serving, buffers)
    assert all(spans[0][0] == "v0" for _, spans in answers)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda: OSError(5, "Input/output error"), "UNAVAILABLE"),
        (lambda: FileNotFoundError(2, "No such file or directory"), "UNAVAILABLE"),
        (MemoryError, "RESOURCE_EXHAUSTED"),
    ],
)
async def test_a_disk_that_fails_half_way_is_refused_for_now(
    serving: Serving,
    monkeypatch: pytest.MonkeyPatch,
    buffers: list[weakref.ref[torch.Tensor]],
    fault: Callable[[], Exception],
    code: str,
) -> None:
    open_file = Path.open

    def failing_open(path: Path, *args: Any, **kwargs: Any) -> Any:
        file = open_file(path, *args, **kwargs)
        return HalfReadable(file, fault) if path.suffix == ".safetensors" else file

    async with serving.under_load():
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", failing_open)
            error = await refusal(serving.load("v1"))
    assert (error.code, error.retriable) == (code, True)
    await nothing_is_left_of_v1(serving, buffers)
    await serving.load("v1")
    assert (await serving.activate("v1"))["previous"] == "v0"


async def test_a_file_that_ends_while_it_is_read_is_refused(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, buffers: list[weakref.ref[torch.Tensor]]
) -> None:
    open_file = Path.open

    def ending_open(path: Path, *args: Any, **kwargs: Any) -> Any:
        file = open_file(path, *args, **kwargs)
        return HalfReadable(file, None) if path.suffix == ".safetensors" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", ending_open)
        error = await refusal(serving.load("v1"))
    assert (error.code, "early while it was read" in error.message) == ("FAILED_PRECONDITION", True)
    await nothing_is_left_of_v1(serving, buffers)


class HalfReadable:
    """A file whose second piece of tensors raises `fault`, or is not there."""

    def __init__(self, file: Any, fault: Callable[[], Exception] | None) -> None:
        self._file, self._fault, self._pieces = file, fault, 0

    def __enter__(self) -> HalfReadable:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        return bytes(self._file.read(size))

    def readinto(self, memory: memoryview) -> int:
        self._pieces += 1
        if self._pieces == 1:
            return int(self._file.readinto(memory[: len(memory) // 2]))
        if self._fault is not None:
            raise self._fault()
        return 0


def copy_of(model: Path, folder: Path) -> Path:
    path = folder / "copy"
    path.mkdir()
    for file in model.iterdir():
        if file.is_file():
            (path / file.name).write_bytes(file.read_bytes())
    return path


async def nothing_is_left_of_v1(serving: Serving, buffers: list[weakref.ref[torch.Tensor]]) -> None:
    assert await serving.resident() == ["v0"]
    gc.collect()
    assert len(buffers) == 1
    assert buffers[0]() is None
    error = await refusal(serving.activate("v1"))
    assert error.code == "NOT_FOUND"


# -- more versions than there is room for ----------------------------------------------------------------------------


async def test_a_version_too_many_is_refused_and_names_what_to_unload(serving: Serving) -> None:
    await serving.load("v1")
    await serving.load("v2")
    error = await refusal(serving.load("v3"))
    assert (error.code, error.retriable) == ("RESOURCE_EXHAUSTED", True)
    assert "unload v1 or v2, then try again" in error.message
    await serving.host.call("policy", {"op": "unload", "version": "v1"})
    await serving.load("v3")
    assert await serving.resident() == ["v0", "v2", "v3"]


async def test_what_a_killed_trainer_left_makes_room_after_a_minute_without_a_request(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serving.load("v1")
    await serving.load("v2")
    await serving.answer([1, 2, 3], "v1")  # v2 is idle longer now
    monkeypatch.setattr(weights_ops, "STAGED_IDLE_SECONDS", 0.0)
    await serving.load("v3")
    assert await serving.resident() == ["v0", "v1", "v3"]


async def test_what_is_to_serve_pushes_an_idle_staged_version_out(serving: Serving) -> None:
    await serving.load("v1")
    await serving.load("v2")
    await serving.load("v3", urgent=True)
    await serving.activate("v3")
    assert await serving.resident() == ["v2", "v3"]


async def test_a_load_waits_for_room_while_an_old_version_drains(serving: Serving) -> None:
    async with serving.under_load() as answers:
        for number in range(1, 7):
            await serving.load(f"v{number}")
            await serving.activate(f"v{number}")
            assert len(await serving.resident()) <= 3
    assert all(len(spans) == 1 for _, spans in answers)


# -- an engine that dies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [RuntimeError("the step broke"), SystemExit("somebody called exit")])
async def test_a_dead_engine_is_built_again_and_waits_for_weights(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def dying_step(engine: Engine) -> None:
        raise fault

    expected = await serving.answer([1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", dying_step)
        error = await refusal(serving.answer([1, 2, 3]))
    assert (error.code, error.retriable) == ("UNAVAILABLE", True)
    assert "the engine has stopped" in error.message
    assert (await serving.status())["serving_version"] == ""
    assert await serving.resident() == []
    assert (await refusal(serving.answer([1, 2, 3]))).code == "UNAVAILABLE"
    await serving.load("v0")
    await serving.activate("v0")
    assert await serving.answer([1, 2, 3]) == expected
