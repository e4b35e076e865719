"""Weight matrices in the layout that the processor multiplies fastest.

For a few dozen rows, oneDNN on a weight packed beforehand takes 0.4 to 0.5 of the time of the BLAS that torch calls by
default on AMD processors (measured: 32 rows, 256 x 1408, one core of an EPYC: 259 against 120 microseconds), and it
applies an activation, a product or a residual sum in the same pass.

oneDNN compiles a kernel for each number of rows and keeps it (0.6 MB, half a millisecond: 200 numbers of rows of five
matrices took 570 MB). So there are few numbers of rows: `padded_rows` names them, and longer inputs go in blocks.
"""

from __future__ import annotations

import logging

import torch
from torch.nn import functional

log = logging.getLogger(__name__)
_PACK_ROWS = 32  # the number of rows that the packed layout is chosen for; every other number works too
_FEW_ROWS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)
_STEP_ROWS = 32  # beyond the few
_BLOCK_ROWS = 128  # the most rows of one call


def padded_rows(rows: int) -> int:
    """The number of rows to compute where `rows` are wanted."""
    if rows <= _FEW_ROWS[-1]:
        return next(few for few in _FEW_ROWS if few >= rows)
    return -(-rows // _STEP_ROWS) * _STEP_ROWS


def row_counts() -> list[int]:
    """Every number of rows that a kernel is ever compiled for."""
    return [*_FEW_ROWS, *range(2 * _STEP_ROWS, _BLOCK_ROWS + 1, _STEP_ROWS)]


def packing_works() -> bool:
    """Whether this build of torch has the packed multiplication, and it is right."""
    global _works
    if _works is None:
        try:
            x, weight = torch.randn(3, 16), torch.randn(8, 16)
            with torch.inference_mode():
                packed = _Packed(weight, None)
                _works = bool(torch.allclose(packed(x), functional.linear(x, weight), atol=1e-4))
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            _works = False
            log.info("packed multiplication is not available, plain matrices are used: %s", error)
    return _works


_works: bool | None = None


class Linear:
    """`x @ weight.T + bias` for float32 `x` `[rows, in]`, plain."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight, self._bias)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(self(x))

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`self(x) * other`, element by element."""
        return self(x) * other

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self(x) + other


class _Packed(Linear):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS), bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._unary(x, "none")

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return self._unary(x, "swish")

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self._binary(x, other, "mul")

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self._binary(x, other, "add")

    def _unary(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if len(x) > _BLOCK_ROWS:
            return torch.cat([self._unary(block, name) for block in x.split(_BLOCK_ROWS)])
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, name, [], "")
        return result

    def _binary(self, x: torch.Tensor, other: torch.Tensor, name: str) -> torch.Tensor:
        if len(x) > _BLOCK_ROWS:
            blocks = zip(x.split(_BLOCK_ROWS), other.split(_BLOCK_ROWS), strict=True)
            return torch.cat([self._binary(*block, name) for block in blocks])
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, name)
        return result


class _PackedHalf(Linear):
    """Weights and products in bfloat16, sums in float32 inside; `x` and the result stay float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        half = bias.to(torch.bfloat16) if bias is not None else None
        self._packed = _Packed(weight.to(torch.bfloat16), half)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._packed(x.to(torch.bfloat16)).float()


class _Half(Linear):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.to(torch.bfloat16), bias.to(torch.bfloat16) if bias is not None else None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x.to(torch.bfloat16)).float()


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None, dtype: str = "float32") -> Linear:
    """The fastest that works here. It holds copies of its own: `weight` and `bias` may be parts of a whole file."""
    bias = bias.clone() if bias is not None else None
    packed = weight.device.type == "cpu" and packing_works()
    if dtype == "bfloat16":
        return (_PackedHalf if packed else _Half)(weight, bias)
    return _Packed(weight, bias) if packed else Linear(weight.clone(), bias)
