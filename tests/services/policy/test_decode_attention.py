"""The compiled attention of a decode step gives what torch's gives, and its absence is survived."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from services.policy.engine.forward import decode_attention as module
from services.policy.engine.forward.decode_attention import DecodeAttention, decode_attention


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is compiled or looked up before, nor left behind."""
    module._function.cache_clear()
    yield
    module._function.cache_clear()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _attention(heads: int, kv_heads: int, dimension: int) -> DecodeAttention:
    attention = decode_attention(heads, kv_heads, dimension, dimension**-0.5)
    assert attention is not None, "a C compiler is missing: install gcc (apt-get install gcc)"
    return attention


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dimension"), [(8, 4, 32), (4, 4, 64), (6, 2, 128), (4, 1, 24), (2, 2, 5)]
)
def test_it_agrees_with_torch_and_writes_the_new_keys_and_values(
    heads: int, kv_heads: int, dimension: int, window: int
) -> None:
    torch.manual_seed(0)
    rows, positions, length = torch.tensor([0, 2, 3]), torch.tensor([0, 11, 39]), 40
    keys, values = (torch.randn(5, kv_heads, length, dimension) for _ in range(2))
    before = keys.clone(), values.clone()
    qkv = torch.randn(3, heads + 2 * kv_heads, dimension)
    found = _attention(heads, kv_heads, dimension)(qkv, keys, values, rows, positions, window)
    for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        assert torch.equal(keys[row, :, position], qkv[index, heads : heads + kv_heads])
        assert torch.equal(values[row, :, position], qkv[index, heads + kv_heads :])
        first = max(0, position + 1 - window) if window else 0
        expected = functional.scaled_dot_product_attention(
            qkv[index, :heads].view(kv_heads, heads // kv_heads, dimension),
            keys[row, :, first : position + 1],
            values[row, :, first : position + 1],
        )
        assert torch.allclose(found[index], expected.flatten(), atol=1e-5)
        keys[row, :, position], values[row, :, position] = before[0][row, :, position], before[1][row, :, position]
    assert torch.equal(keys, before[0])  # and nothing else was touched
    assert torch.equal(values, before[1])


def test_large_scores_do_not_overflow() -> None:
    keys, values = torch.full((1, 1, 8, 32), 100.0), torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 32).clone()
    qkv = torch.full((1, 3, 32), 100.0)
    qkv[0, 2] = 7.0
    found = _attention(1, 1, 32)(qkv, keys, values, torch.tensor([0]), torch.tensor([7]), 0)
    assert torch.allclose(found, torch.full((1, 32), 3.5))  # all keys are alike: the mean of 0 .. 7


def test_it_is_compiled_once_for_a_source_and_a_processor(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _attention(2, 2, 32)
    (library,) = (tmp_path / "anyloop").iterdir()
    built = library.stat().st_mtime_ns
    module._function.cache_clear()
    _attention(2, 2, 32)
    assert [(path, path.stat().st_mtime_ns) for path in (tmp_path / "anyloop").iterdir()] == [(library, built)]


@pytest.mark.parametrize(("compiler", "reason"), [("/nowhere/cc", "No such file"), ("false", "false failed")])
def test_without_a_compiler_that_works_torch_attends_and_the_log_says_so_once(
    fresh: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compiler: str,
    reason: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO):
        assert [decode_attention(2, 2, 32, 1.0) for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert reason in record.getMessage()


def test_without_a_home_torch_attends(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert decode_attention(2, 2, 32, 1.0) is None


def test_where_torch_has_several_threads_its_own_attention_uses_them() -> None:
    torch.set_num_threads(2)
    assert decode_attention(2, 2, 32, 1.0) is None
