import math

import pytest

from k8s import scrape, verdicts
from k8s.scrape import Sample
from k8s.spec import Analysis, ErrorRate, GateReport, Latency, Metric, PrometheusQuery
from k8s.verdicts import Measurement, Verdict

TTFT = "anyloop_time_to_first_token_seconds"
PAGE = """\
# HELP anyloop_request_success_total Responses that ended
# TYPE anyloop_request_success_total counter
anyloop_request_success_total{finished_reason="stop",model_name="policy"} 90.0
anyloop_request_success_total{finished_reason="length",model_name="policy"} 6.0
anyloop_request_success_total{finished_reason="stop",model_name="critique"} 5.0
# TYPE anyloop_request_failures_total counter
anyloop_request_failures_total{code="INTERNAL",model_name="policy"} 3.0
anyloop_request_failures_total{code="UNAVAILABLE",model_name="policy"} 1.0
anyloop_request_failures_total{code="CANCELLED",model_name="policy"} 50.0
anyloop_request_failures_total{code="INVALID_ARGUMENT",model_name="policy"} 20.0
# TYPE anyloop_time_to_first_token_seconds histogram
anyloop_time_to_first_token_seconds_bucket{le="0.1",model_name="policy"} 50.0
anyloop_time_to_first_token_seconds_bucket{le="0.2",model_name="policy"} 90.0
anyloop_time_to_first_token_seconds_bucket{le="+Inf",model_name="policy"} 100.0
anyloop_time_to_first_token_seconds_count{model_name="policy"} 100.0
anyloop_time_to_first_token_seconds_sum{model_name="policy"} 12.0
# TYPE python_info gauge
python_info{version="3.11"} 1.0
"""


def sample(ok: float, failed: float, buckets: dict[float, float] | None = None) -> Sample:
    return Sample(ok, failed, {TTFT: buckets or {}})


def test_a_page_is_read_for_one_model_and_only_the_services_faults_are_failures() -> None:
    found = scrape.read(PAGE, "policy")
    assert (found.succeeded, found.failed) == (96.0, 4.0)
    assert found.error_rate == pytest.approx(0.04)
    assert found.buckets == {TTFT: {0.1: 50.0, 0.2: 90.0, math.inf: 100.0}}


def test_quantiles_are_those_of_prometheus() -> None:
    found = scrape.read(PAGE, "policy")
    assert found.quantile(TTFT, 0.5) == pytest.approx(0.1)
    assert found.quantile(TTFT, 0.7) == pytest.approx(0.15)  # rank 70: half of the way from 50 to 90
    assert found.quantile(TTFT, 0.99) == 0.2  # beyond the last finite bound
    assert Sample().quantile(TTFT, 0.5) is None


def test_a_counter_that_went_back_began_anew() -> None:
    assert sample(10, 1).since(sample(100, 0)) == sample(10, 1)
    assert sample(110, 1).since(sample(100, 0)) == sample(10, 1)


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        (ErrorRate(max=0.05), Verdict.PASSED),
        (ErrorRate(max=0.03), Verdict.FAILED),
        (ErrorRate(max_difference=0.03), Verdict.PASSED),
        (ErrorRate(max_difference=0.01), Verdict.FAILED),
        (ErrorRate(max=0.05, max_difference=0.01), Verdict.FAILED),
    ],
    ids=["under max", "over max", "beside stable", "worse than stable", "either bound"],
)
def test_error_rates(test: ErrorRate, verdict: Verdict) -> None:
    found = verdicts.of_errors("errors", test, sample(96, 4), sample(98, 2), 20)
    assert (found.verdict, found.value, found.stable_value) == (verdict, 0.04, 0.02)


def test_few_requests_prove_nothing_not_even_failures() -> None:
    found = verdicts.of_errors("errors", ErrorRate(max=0.0), sample(0, 5), None, 20)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.message == "5 requests on the target's replicas so far, 20 are needed"


def test_a_comparison_with_nobody_is_skipped_and_one_with_idle_replicas_waits() -> None:
    relative = ErrorRate(max_difference=0.01)
    assert verdicts.of_errors("errors", relative, sample(96, 4), None, 20).verdict is Verdict.SKIPPED
    for idle in (sample(0, 0), sample(0, 19)):  # few requests prove nothing on the stable replicas either
        found = verdicts.of_errors("errors", relative, sample(96, 4), idle, 20)
        assert (found.verdict, found.stable_value) == (Verdict.INCONCLUSIVE, None)


@pytest.mark.parametrize("failed", [0, 19], ids=["no request", "few requests"])
def test_an_absolute_bound_is_no_substitute_for_a_comparison_that_is_still_to_come(failed: int) -> None:
    both = ErrorRate(max=0.1, max_difference=0.01)
    idle = sample(0, failed)
    assert verdicts.of_errors("errors", both, sample(96, 4), idle, 20).verdict is Verdict.INCONCLUSIVE
    assert verdicts.of_errors("errors", both, sample(80, 20), idle, 20).verdict is Verdict.FAILED
    assert verdicts.of_errors("errors", both, sample(96, 4), None, 20).verdict is Verdict.PASSED
    fast = sample(100, 0, {0.1: 100, math.inf: 100})
    latency = Latency(max_seconds=0.4, max_ratio=1.5)
    assert verdicts.of_latency("ttft", latency, fast, idle, 20).verdict is Verdict.INCONCLUSIVE
    assert verdicts.of_latency("ttft", latency, fast, None, 20).verdict is Verdict.PASSED


def test_latencies_are_judged_absolutely_and_beside_the_stable_replicas() -> None:
    slow = sample(100, 0, {0.1: 0, 0.5: 100, math.inf: 100})
    fast = sample(100, 0, {0.1: 100, 0.5: 100, math.inf: 100})
    absolute = verdicts.of_latency("ttft", Latency(max_seconds=0.4), slow, fast, 20)
    assert (absolute.verdict, absolute.value) == (Verdict.FAILED, pytest.approx(0.48))
    assert verdicts.of_latency("ttft", Latency(max_seconds=0.5), slow, fast, 20).verdict is Verdict.PASSED
    ratio = verdicts.of_latency("ttft", Latency(max_ratio=2.0), slow, fast, 20)
    assert ratio.verdict is Verdict.FAILED
    assert "times the stable replicas'" in ratio.message


@pytest.mark.parametrize(
    ("report", "verdict"),
    [({"gain": {"low": 0.1}}, Verdict.PASSED), ({"gain": {"low": -0.1}}, Verdict.FAILED), ({}, Verdict.FAILED)],
    ids=["above", "below", "absent"],
)
def test_the_gates_report(report: dict[str, object], verdict: Verdict) -> None:
    assert verdicts.of_gate("gain", GateReport("gain.low", min=0.0), report).verdict is verdict


def test_a_query_without_a_number_is_inconclusive() -> None:
    test = PrometheusQuery("up", max=1.0)
    assert verdicts.of_query("up", test, None, "away").verdict is Verdict.INCONCLUSIVE
    assert verdicts.of_query("up", test, math.nan).verdict is Verdict.INCONCLUSIVE
    assert verdicts.of_query("up", test, 2.0).verdict is Verdict.FAILED
    assert verdicts.of_query("up", test, 1.0).verdict is Verdict.PASSED


def test_a_step_fails_by_one_metric_and_is_conclusive_by_all() -> None:
    metrics = (Metric("errors", ErrorRate(max=0.1)), Metric("up", PrometheusQuery("up", max=1)))
    analysis = Analysis(metrics, failure_limit=1)
    good = Measurement("errors", Verdict.PASSED, passes=1)
    assert not verdicts.of_step(analysis, {"errors": good}).conclusive
    skipped = Measurement("up", Verdict.SKIPPED)
    assert verdicts.of_step(analysis, {"errors": good, "up": skipped}).conclusive
    once = Measurement("up", Verdict.FAILED, failures=1)
    assert not verdicts.of_step(analysis, {"errors": good, "up": once}).failed
    twice = Measurement("up", Verdict.FAILED, failures=2, message="it is 3")
    assert verdicts.of_step(analysis, {"errors": good, "up": twice}).failed == "metric up failed 2 times: it is 3"


def test_few_requests_that_are_over_the_bound_are_in_doubt() -> None:
    analysis = Analysis((Metric("errors", ErrorRate(max=0.1)),), failure_limit=1)

    def doubt(failed: int) -> str:
        found = verdicts.of_errors("errors", ErrorRate(max=0.1), sample(10 - failed, failed), None, 20)
        found = Measurement.from_status(found.to_status())  # by a controller that takes over, too
        return verdicts.of_step(analysis, {"errors": found}).doubt

    assert doubt(1) == ""
    assert doubt(2) == (
        "metric errors is 0.2, over the bound of max: 10 requests on the target's replicas so far, 20 are needed"
    )
    once = verdicts.of_errors("errors", ErrorRate(max=0.1), sample(50, 50), None, 20)
    once = Measurement.from_status({**once.to_status(), "failures": 1})
    assert "50.00% of the requests failed" in verdicts.of_step(analysis, {"errors": once}).doubt
    passed = Measurement("errors", Verdict.INCONCLUSIVE, 0.2, passes=1)
    assert verdicts.of_step(analysis, {"errors": passed}) == verdicts.Step()


def test_a_measurement_survives_the_status() -> None:
    found = Measurement("errors", Verdict.FAILED, 0.04, 0.02, 100, "too many", 1700000000.0, failures=2)
    assert Measurement.from_status(found.to_status()) == found
