from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from k8s.config import ControllerSettings
from k8s.measuring import Meter, StepAnalysis
from k8s.pods import Pod
from k8s.spec import Analysis, ErrorRate, Metric, PrometheusQuery
from k8s.verdicts import Verdict

ERRORS = Analysis((Metric("errors", ErrorRate(max=0.1)),), interval=10.0, warm_up=5.0, minimum_requests=20)
NAMES = {"version": "v2", "stable": "v1", "namespace": "shop", "pods": "policy-1|policy-2"}


def pod(name: str, incarnation: str = "c/0") -> Pod:
    return Pod("shop", name, f"uid-{name}", ip=f"{name}.test", metrics_port=9100, ready=True, incarnation=incarnation)


class Metrics:
    """What the replicas' pages and Prometheus say."""

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, int]] = {}
        self.away: set[str] = set()
        self.prometheus: object = {"status": "success", "data": {"resultType": "scalar", "result": [0, "0.5"]}}
        self.asked: list[httpx.Request] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if request.url.path == "/api/v1/query":
            return httpx.Response(200, json=self.prometheus)
        name = request.url.host.removesuffix(".test")
        if name in self.away:
            raise httpx.ConnectError("refused", request=request)
        ok, failed = self.counts.get(name, (0, 0))
        text = (
            "# TYPE anyloop_request_success_total counter\n"
            f'anyloop_request_success_total{{finished_reason="stop",model_name="policy"}} {ok}\n'
            "# TYPE anyloop_request_failures_total counter\n"
            f'anyloop_request_failures_total{{code="INTERNAL",model_name="policy"}} {failed}\n'
        )
        return httpx.Response(200, text=text)


class Stage:
    def __init__(self, analysis: Analysis = ERRORS, **settings: object) -> None:
        self.now = 100.0
        self.metrics = Metrics()
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.metrics.answer))
        self.meter = Meter(ControllerSettings(_env_file=None, **settings), client)  # type: ignore[call-arg,arg-type]
        self.analysis = StepAnalysis(analysis, self.meter, elapsed=lambda: self.now)
        self.target = [pod("policy-1")]
        self.stable: list[Pod] | None = [pod("policy-0")]

    async def at(self, now: float) -> Verdict | None:
        self.now = now
        await self.analysis.measure(self.target, self.stable, "policy", NAMES)
        found = self.analysis.measurements.get(next(iter(ERRORS.metrics)).name)
        return found.verdict if found else None


async def test_only_what_comes_after_the_warm_up_counts() -> None:
    stage = Stage()
    stage.metrics.counts = {"policy-1": (0, 1000)}
    assert await stage.at(104.0) is None
    assert not stage.metrics.asked
    assert await stage.at(105.0) is None  # the first look is what later ones are compared with
    stage.metrics.counts = {"policy-1": (100, 1000)}
    assert await stage.at(115.0) is Verdict.PASSED
    assert stage.analysis.verdict.conclusive


async def test_a_measurement_goes_on_until_it_has_its_requests() -> None:
    stage = Stage()
    await stage.at(105.0)
    stage.metrics.counts = {"policy-1": (6, 4)}
    assert await stage.at(115.0) is Verdict.INCONCLUSIVE
    stage.metrics.counts = {"policy-1": (12, 8)}
    assert await stage.at(125.0) is Verdict.FAILED
    assert stage.analysis.verdict.failed == (
        "metric errors failed 1 times: 40.00% of the requests failed, over the 10.00% of max"
    )


async def test_each_measurement_begins_where_the_last_one_ended() -> None:
    stage = Stage(replace(ERRORS, failure_limit=1))
    await stage.at(105.0)
    stage.metrics.counts = {"policy-1": (10, 90)}
    assert await stage.at(115.0) is Verdict.FAILED
    stage.metrics.counts = {"policy-1": (110, 90)}
    assert await stage.at(125.0) is Verdict.PASSED
    assert not stage.analysis.verdict.failed


async def test_a_replica_that_began_anew_is_counted_from_its_own_beginning() -> None:
    stage = Stage()
    stage.metrics.counts = {"policy-1": (1000, 0)}
    await stage.at(105.0)
    stage.target = [pod("policy-1", incarnation="c/1")]
    stage.metrics.counts = {"policy-1": (0, 15)}
    assert await stage.at(115.0) is Verdict.INCONCLUSIVE
    stage.metrics.counts = {"policy-1": (100, 15)}
    assert await stage.at(125.0) is Verdict.PASSED


async def test_a_replica_whose_page_cannot_be_read_is_left_out() -> None:
    stage = Stage()
    stage.target = [pod("policy-1"), pod("policy-2")]
    await stage.at(105.0)
    stage.metrics.away = {"policy-2"}
    stage.metrics.counts = {"policy-1": (50, 0)}
    assert await stage.at(115.0) is Verdict.PASSED
    assert stage.analysis.measurements["errors"].requests == 50


async def test_of_a_large_fleet_only_some_are_read() -> None:
    stage = Stage(scraped_replicas=3)
    stage.target = [pod(f"policy-{number}") for number in range(10)]
    await stage.at(105.0)
    assert len(stage.metrics.asked) == 3 + 1


async def test_failed_measurements_of_a_controller_before_stay_failed() -> None:
    stage = Stage(replace(ERRORS, failure_limit=1))
    await stage.at(105.0)
    stage.metrics.counts = {"policy-1": (0, 100)}
    await stage.at(115.0)
    known = list(stage.analysis.measurements.values())
    heir = StepAnalysis(replace(ERRORS, failure_limit=1), stage.meter, 5.0, known, elapsed=lambda: stage.now)
    stage.analysis = heir
    await stage.at(125.0)
    stage.metrics.counts = {"policy-1": (0, 200)}
    await stage.at(135.0)
    assert heir.verdict.failed.startswith("metric errors failed 2 times")


async def test_stable_replicas_that_do_not_answer_now_are_waited_for() -> None:
    relative = Metric("errors", ErrorRate(max_difference=0.01))
    stage = Stage(replace(ERRORS, metrics=(relative,)))
    stage.stable = []
    await stage.at(105.0)
    stage.metrics.counts = {"policy-1": (50, 50)}
    assert await stage.at(115.0) is Verdict.INCONCLUSIVE
    stage.stable = None  # by this step none is left
    assert await stage.at(125.0) is Verdict.SKIPPED


async def test_a_wall_clock_that_is_set_back_delays_no_measurement() -> None:
    stage = Stage()
    wall = [1e9]
    stage.analysis = StepAnalysis(ERRORS, stage.meter, 3.0, clock=lambda: wall[0], elapsed=lambda: stage.now)
    assert stage.analysis.next_in == 2.0  # of the warm-up's five
    await stage.at(102.0)
    wall[0] = 0.0
    stage.metrics.counts = {"policy-1": (50, 0)}
    assert await stage.at(112.0) is Verdict.PASSED
    assert stage.analysis.measurements["errors"].at == 0.0


@pytest.mark.parametrize(
    "answer",
    [{"status": "success"}, {"status": "success", "data": {"resultType": "vector", "result": [{}]}}, [], {"data": 1}],
    ids=["no data", "no value", "no object", "no status"],
)
async def test_what_is_no_answer_of_prometheus_is_no_number(answer: object) -> None:
    stage = Stage(prometheus_url="http://prometheus.test")
    stage.metrics.prometheus = answer
    value, why = await stage.meter.query(PrometheusQuery("up"), NAMES)
    assert value is None
    assert "Prometheus" in why


@pytest.mark.parametrize(
    ("result", "value", "why"),
    [
        ({"resultType": "scalar", "result": [0, "0.5"]}, 0.5, ""),
        ({"resultType": "vector", "result": [{"metric": {}, "value": [0, "2"]}]}, 2.0, ""),
        ({"resultType": "vector", "result": []}, None, "the query gives 0 values: it must give one"),
        ({"resultType": "scalar", "result": [0, "NaN"]}, None, "the query's result is not a number"),
        ({"resultType": "matrix", "result": []}, None, "the query gives a matrix: it must give one number"),
    ],
    ids=["scalar", "vector", "empty", "nan", "matrix"],
)
async def test_a_query_gives_one_number_or_says_why_not(result: object, value: float | None, why: str) -> None:
    stage = Stage(prometheus_url="http://prometheus.test")
    stage.metrics.prometheus = {"status": "success", "data": result}
    assert await stage.meter.query(PrometheusQuery("up"), NAMES) == (value, why)


async def test_a_query_names_the_versions_and_pods_and_the_token_goes_to_the_settings_server_only(
    tmp_path: Path,
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    stage = Stage(prometheus_url="http://prometheus.test", prometheus_token_file=token)
    test = PrometheusQuery('errors{pod=~"$(pods)",version="$(version)"}')
    await stage.meter.query(test, NAMES)
    await stage.meter.query(replace(test, address="http://elsewhere.test"), NAMES)
    own, other = stage.metrics.asked
    assert own.url.params["query"] == 'errors{pod=~"policy-1|policy-2",version="v2"}'
    assert own.headers["authorization"] == "Bearer secret"
    assert "authorization" not in other.headers


async def test_without_prometheus_a_query_says_what_to_set() -> None:
    stage = Stage()
    value, why = await stage.meter.query(PrometheusQuery("up"), NAMES)
    assert value is None
    assert "ANYLOOP_CONTROLLER_PROMETHEUS_URL" in why
