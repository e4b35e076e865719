import urllib.request

import pytest
from prometheus_client import REGISTRY, generate_latest

from anyloop.telemetry import metrics


def test_names_are_those_our_users_know() -> None:
    exposed = {
        line.split()[2] for line in generate_latest().decode().splitlines() if line.startswith("# TYPE anyloop_")
    }
    assert {
        "anyloop_num_requests_running",
        "anyloop_num_requests_waiting",
        "anyloop_time_to_first_token_seconds",
        "anyloop_inter_token_latency_seconds",
        "anyloop_e2e_request_latency_seconds",
        "anyloop_prompt_tokens_total",
        "anyloop_generation_tokens_total",
        "anyloop_request_success_total",
        "anyloop_swap_stall_seconds",
        "anyloop_policy_version_info",
        "anyloop_feedback_events_total",
        "anyloop_feedback_to_serving_seconds",
        "anyloop_trainer_step_seconds",
        "anyloop_log_lag",
        "anyloop_gate_decisions_total",
    } <= exposed


def test_only_the_serving_version_is_shown() -> None:
    metrics.set_policy_version("model-a", "policy-000001")
    metrics.set_policy_version("model-a", "policy-000002")
    metrics.set_policy_version("model-b", "policy-000001")

    def shown(model: str, version: str) -> float | None:
        return REGISTRY.get_sample_value("anyloop_policy_version_info", {"model_name": model, "version": version})

    assert shown("model-a", "policy-000001") is None
    assert shown("model-a", "policy-000002") == 1
    assert shown("model-b", "policy-000001") == 1


def test_a_server_exposes_them_until_it_is_stopped(unused_tcp_port: int) -> None:
    metrics.GATE_DECISIONS.labels("promoted").inc()
    stop = metrics.start_metrics_server(unused_tcp_port)
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/metrics") as response:
        assert b'anyloop_gate_decisions_total{outcome="promoted"}' in response.read()
    with pytest.raises(OSError):
        metrics.start_metrics_server(unused_tcp_port)
    stop()
    metrics.start_metrics_server(unused_tcp_port)()


def test_port_zero_serves_nothing() -> None:
    metrics.start_metrics_server(0)()
