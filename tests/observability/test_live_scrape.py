"""The metrics that this project promises exist and move, and nothing else is asked for by rules and dashboards.

Real services in this process (gateway, policy, decoders; learner and gate with scripted services), a real scrape.
"""

import asyncio
from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.parser import text_string_to_metric_families

from anyloop.log import RESPONSES, open_log
from anyloop.registry import announce
from anyloop.sequence import Sequencer
from anyloop.telemetry import metrics
from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc
from tests.models.random_omni import build_random_omni
from tests.observability.loop_stack import Stack, serving
from tests.observability.references import panel_queries, recorded, rule_queries
from tests.services.running_replica import publish_variant, user
from tests.trainer.loop import open_sqlite_loop
from trainer.intake import GROUP
from trainer.lag import LagMeter

# Not ours: Triton's own, and what Prometheus itself says of every target.
FOREIGN = {"nv_inference_request_failure", "up"}
# What the scrape configuration adds, and what a histogram has.
TARGET = {"namespace", "pod", "instance", "component", "job", "le"}

PROMISED = {
    "anyloop_serving",
    "anyloop_gateway_ready",
    "anyloop_num_requests_running",
    "anyloop_num_requests_waiting",
    "anyloop_time_to_first_token_seconds",
    "anyloop_inter_token_latency_seconds",
    "anyloop_e2e_request_latency_seconds",
    "anyloop_prompt_tokens",
    "anyloop_generation_tokens",
    "anyloop_request_success",
    "anyloop_request_failures",
    "anyloop_swap_stall_seconds",
    "anyloop_policy_version_info",
    "anyloop_feedback_events",
    "anyloop_feedback_to_serving_seconds",
    "anyloop_trainer_step_seconds",
    "anyloop_log_lag",
    "anyloop_gate_decisions",
    "anyloop_http_requests",
    "anyloop_http_request_seconds",
    "anyloop_edge_requests",
    "anyloop_rpc_requests",
    "anyloop_rpc_request_seconds",
    "anyloop_build_info",
}


async def serve_some(folder: Path) -> dict[str, Metric]:
    async with serving(folder) as stack:
        body = {"messages": [{"role": "user", "content": "Draw"}], "modalities": ["image"]}
        answer = await stack.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        long = {"messages": [{"role": "user", "content": "Go on"}], "modalities": ["text"], "max_tokens": 20}
        assert (await stack.http.post("/v1/chat/completions", json=long)).status_code == 200
        assert (await stack.http.post("/v1/chat/completions", json={"messages": 3})).status_code == 400
        assert (await stack.http.get("/no/such/route")).status_code == 404
        said = {"response_id": answer.json()["id"], "critique": "Bluer", "label": False}
        assert (await stack.http.post("/v1/feedback", json=said)).status_code == 200
        await over_grpc(stack)
        await swap(stack, folder)
        await stack.policy.events(RESPONSES, 3)
        scraped = await asyncio.to_thread(httpx.get, stack.metrics, trust_env=False)
    return {family.name: family for family in text_string_to_metric_families(scraped.text)}


async def over_grpc(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.edge) as channel:
        policy = policy_pb2_grpc.PolicyServiceStub(channel)
        async for _ in policy.Generate(policy_pb2.GenerateRequest(messages=[user("hello")])):
            pass
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in policy.Generate(policy_pb2.GenerateRequest()):
                pass
    with pytest.raises(grpc.aio.AioRpcError):  # what the gateway would have caught
        async for _ in policy_pb2_grpc.PolicyServiceStub(stack.policy.channel).Generate(policy_pb2.GenerateRequest()):
            pass


async def swap(stack: Stack, folder: Path) -> None:
    model = build_random_omni(folder / "other", seed=1)
    version = publish_variant(stack.policy.registry, "policy", model, "policy-000000")
    digest = stack.policy.registry.manifest(version).weights_digest
    announce(stack.policy.log, "policy", version, "promoted", digest=digest, decided_by="test", reason="test")
    await stack.policy.until_serving(version)


def learn_some(folder: Path) -> None:
    """A round with its gate, to weights in service; and how far it is behind."""
    model = build_random_omni(folder / "model")
    with open_sqlite_loop(folder, model, Sequencer.from_pretrained(model)) as loop:
        loop.say(8)
        learner = loop.learner()
        with LagMeter(lambda: open_log(loop.settings.effective_log_url), GROUP, (RESPONSES,), every_s=0.05):
            assert loop.with_gate(learner)


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    metrics.expect_learner((), 64)
    metrics.expect_controller()
    learn_some(tmp_path_factory.mktemp("learning"))
    return asyncio.run(serve_some(tmp_path_factory.mktemp("serving")))


def test_every_promised_metric_is_scraped_and_has_moved(scrape: dict[str, Metric]) -> None:
    assert sorted(PROMISED - scrape.keys()) == []
    gauges = {"anyloop_num_requests_running", "anyloop_num_requests_waiting", "anyloop_log_lag"}  # back at zero by now
    still = [name for name in PROMISED - gauges if not any(sample.value > 0 for sample in scrape[name].samples)]
    assert still == []
    assert all(scrape[name].samples for name in gauges)


def test_what_a_request_came_to_is_its_label(scrape: dict[str, Metric]) -> None:
    rest = {
        (sample.labels["route"], sample.labels["method"], sample.labels["code"])
        for sample in scrape["anyloop_http_requests"].samples
        if sample.name.endswith("_total")
    }
    chat = "/v1/chat/completions"
    assert {(chat, "POST", "200"), (chat, "POST", "400"), ("unmatched", "GET", "404")} <= rest
    assert {route for route, _, _ in rest if "/no/such" in route} == set()
    edge = {
        (sample.labels["method"], sample.labels["code"])
        for sample in scrape["anyloop_edge_requests"].samples
        if sample.name.endswith("_total")
    }
    assert {("Generate", "OK"), ("Generate", "INVALID_ARGUMENT")} <= {(m.rpartition("/")[2], c) for m, c in edge}


def test_rules_and_dashboards_ask_only_for_what_is_exported(scrape: dict[str, Metric]) -> None:
    exported = {sample.name for family in scrape.values() for sample in family.samples}
    for family in scrape.values():  # those without a series yet
        exported |= {family.name + end for end in _SAMPLES.get(family.type, ("",))}
    known = exported | recorded() | FOREIGN
    asked = [*rule_queries(), *panel_queries()]
    assert {f"{query.where}: {name}" for query in asked for name in query.metrics - known} == set()
    assert {query.where for query in asked if not query.metrics} == set()


def test_rules_and_dashboards_name_only_labels_that_there_are() -> None:
    ours = {label for collector in set(REGISTRY._collector_to_names) for label in getattr(collector, "_labelnames", ())}
    asked = [*rule_queries(), *panel_queries()]
    triton = {"model"}
    assert {f"{query.where}: {name}" for query in asked for name in query.labels - ours - TARGET - triton} == set()


_SAMPLES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
