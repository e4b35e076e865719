from typing import Any

import pytest

from bench.serving.plan import ENGINE, PEER, STACK, TRITON
from bench.serving.targets import Target, targets


def _point(rate: float, itl: float = 0.02) -> dict[str, dict[str, Any]]:
    return {"32": {"tokens_per_second": rate, "itl_p99": itl, "message_gap_p99": itl}}


def _report() -> dict[str, Any]:
    return {
        "contenders": {
            PEER: {"greedy": _point(800.0, 0.08), "sampled": _point(500.0)},
            ENGINE: {"greedy": _point(2000.0), "sampled": _point(1800.0)},
            TRITON: {"greedy": _point(1900.0)},
            STACK: {"greedy": _point(1700.0, 0.06), "sampled": _point(1500.0)},
        },
        "floors": {
            "32": {
                "engine": {"greedy": 3000.0, "sampled": 2700.0},
                "hugging_face_forward": {"decode": 2400.0, "with_prompts": 1600.0},
                "matmuls": {"mkl": 4000.0, "onednn": 8000.0, "with_prompts": 5000.0},
            }
        },
        "gateway": {"policy_ttft_p50": 0.020, "gateway_ttft_p50": 0.0225},
    }


def _named(found: list[Target], part: str) -> Target:
    (one,) = [target for target in found if part in target.name]
    return one


@pytest.mark.parametrize(
    ("part", "value", "met"),
    [
        ("transformers serve, tokens/s, 32 streams, greedy", 1700 / 800, True),
        ("transformers serve, tokens/s, 32 streams, sampled", 3.0, None),
        ("p99 inter-token latency", 0.75, True),
        ("p99 gap between messages", 0.75, True),
        ("Hugging Face forward, decode steps", 1.25, False),
        ("matmul floor (torch)", 0.75, True),
        ("matmul floor (oneDNN, packed)", 0.375, False),
        ("Hugging Face forward, prompts read", 1.25, None),
        ("matmul floor (faster one), prompts read", 0.4, None),
        ("Triton / in process", 0.95, True),
        ("gateway adds", 2.5, True),
        ("exact top-p costs", 10.0, True),
    ],
)
def test_a_target_is_its_ratio_and_whether_it_is_met(part: str, value: float, met: bool | None) -> None:
    target = _named(targets({"llama-7m": _report()}), part)
    assert target.value == pytest.approx(value)
    assert target.met is met


def test_the_share_of_the_matmul_floor_has_an_aim_on_the_small_llama_alone() -> None:
    assert _named(targets({"llama-7m": _report()}), "matmul floor (torch)").aim == 0.65
    assert _named(targets({"llama-27m": _report()}), "matmul floor (torch)").aim is None


def test_a_contender_that_failed_leaves_its_targets_out() -> None:
    report = _report()
    report["contenders"][PEER] = {}
    del report["floors"]
    names = [target.name for target in targets({"llama-7m": report})]
    assert names == [
        "Triton / in process, tokens/s, 32 streams, greedy",
        "gateway adds to p50 time to first token, 8 streams",
    ]
