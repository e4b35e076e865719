import subprocess
import sys
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


def test_gauges_of_one_kind_of_process_are_not_shown_by_the_others() -> None:
    program = (
        "from prometheus_client import generate_latest\n"
        "from anyloop.telemetry import metrics\n"
        "for expect in (lambda: 0, metrics.expect_gateway, lambda: metrics.expect_learner((), 500), "
        "metrics.expect_controller, metrics.expect_controller):\n"
        "    expect()\n"
        "    print(*(line for line in generate_latest().decode().splitlines() if line.startswith(GAUGES)), sep=' ')\n"
    )
    gauges = ("anyloop_gateway_ready", "anyloop_trainer_min_feedback", "anyloop_controller_is_leader")
    code = f"GAUGES = {gauges!r}\n{program}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    ready, waits, leads = (f"{name} {value}" for name, value in zip(gauges, ("0.0", "500.0", "0.0"), strict=True))
    lines = said.splitlines()
    assert lines[0] == ""
    assert lines[1] == ready
    assert lines[2] == f"{ready} {waits}"
    assert lines[3] == lines[4] == f"{ready} {waits} {leads}"


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
