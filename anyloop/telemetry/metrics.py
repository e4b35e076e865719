"""The Prometheus metrics of all processes, each created once. Names follow vLLM where it has one, prefixed `anyloop_`.

Counters are named without `_total`, which the client library appends. Times are in seconds.
"""

import threading
from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server

from anyloop import __version__

# From one decode step of a tiny model to a slow video.
_LATENCY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_LATENCY = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_APPEND = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_STALL = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_PHASE = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_LOOP = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)

# Serving
SERVING = Gauge("anyloop_serving", "1 while a replica answers: its health is SERVING", ["model_name"])
NUM_REQUESTS_RUNNING = Gauge("anyloop_num_requests_running", "Requests being decoded", ["model_name"])
NUM_REQUESTS_WAITING = Gauge("anyloop_num_requests_waiting", "Requests waiting for a slot", ["model_name"])
TIME_TO_FIRST_TOKEN = Histogram(
    "anyloop_time_to_first_token_seconds", "From admission to the first token", ["model_name"], buckets=_LATENCY
)
INTER_TOKEN_LATENCY = Histogram(
    "anyloop_inter_token_latency_seconds", "Between two tokens of a response", ["model_name"], buckets=_TOKEN_LATENCY
)
E2E_REQUEST_LATENCY = Histogram(
    "anyloop_e2e_request_latency_seconds", "From admission to the end of a response", ["model_name"], buckets=_LATENCY
)
PROMPT_TOKENS = Counter("anyloop_prompt_tokens", "Prompt tokens processed", ["model_name"])
GENERATION_TOKENS = Counter("anyloop_generation_tokens", "Tokens generated", ["model_name"])
REQUEST_SUCCESS = Counter(
    "anyloop_request_success", "Responses that ended, by reason (stop, length)", ["model_name", "finished_reason"]
)
REQUEST_FAILURES = Counter(
    "anyloop_request_failures",
    "Requests for a response that ended without one, by gRPC status; CANCELLED and INVALID_ARGUMENT are the client's",
    ["model_name", "code"],
)
RPC_REQUESTS = Counter(
    "anyloop_rpc_requests", "gRPC calls between the services, by how they ended", ["service", "method", "code"]
)
RPC_SECONDS = Histogram(
    "anyloop_rpc_request_seconds",
    "From a gRPC call between the services to its end",
    ["service", "method"],
    buckets=_HTTP,
)

# Edge
HTTP_REQUESTS = Counter(
    "anyloop_http_requests",
    "REST requests by the status they came to: 499 where the client left, and that of the error where a stream broke",
    ["route", "method", "code"],
)
HTTP_SECONDS = Histogram(
    "anyloop_http_request_seconds", "From a REST request to the end of its answer", ["route"], buckets=_HTTP
)
EDGE_REQUESTS = Counter("anyloop_edge_requests", "Clients' gRPC calls, by how they ended", ["method", "code"])
# Without labels a gauge would be shown at 0 by every process, as if each were a gateway: see `_show`.
GATEWAY_READY = Gauge("anyloop_gateway_ready", "1 while this gateway's /ready says ready", registry=None)
BUILD_INFO = Gauge("anyloop_build_info", "1; the version is a label", ["version"])

# Swap
SWAP_STALL = Histogram(
    "anyloop_swap_stall_seconds", "How long no decode step ran because of a swap", ["model_name"], buckets=_STALL
)
SWAP_FAILURES = Counter("anyloop_swap_failures", "Swaps refused; the old weights went on serving", ["model_name"])
POLICY_VERSION_INFO = Gauge("anyloop_policy_version_info", "1 for the version that serves", ["model_name", "version"])

# Loop
FEEDBACK_EVENTS = Counter("anyloop_feedback_events", "Feedback accepted, by what it carries", ["kind"])
FEEDBACK_TO_SERVING = Histogram(
    "anyloop_feedback_to_serving_seconds",
    "From a feedback event to weights in service that learned from it",
    buckets=_LOOP,
)
TRAINER_STEP = Histogram("anyloop_trainer_step_seconds", "Time of a phase of a round", ["phase"], buckets=_PHASE)
LOGPROB_MISMATCH = Gauge(
    "anyloop_trainer_logprob_mismatch",
    "How far trainer and serving engine are apart about the same tokens of the same weights (max, mean)",
    ["kind"],
)
GATE_DECISIONS = Counter(
    "anyloop_gate_decisions", "Candidates decided, by outcome (promoted, approved, rejected)", ["outcome"]
)

# Learner
TRAINER_LEFT_OUT = Counter(
    "anyloop_trainer_left_out", "Feedback, or parts of it, not learned from as it stands, by reason", ["reason"]
)
TRAINER_PRINCIPAL_SHARE = Gauge(
    "anyloop_trainer_principal_share_ratio",
    "Largest share of one principal in the weight of the last round's pairs or critiques, after the cap",
    ["of"],
)
TRAINER_FORGOTTEN = Counter(
    "anyloop_trainer_forgotten", "Kinds of work whose held-out margin fell by more than chance in a round's training"
)
TRAINER_FEEDBACK = Gauge("anyloop_trainer_feedback", "Feedback that no round has claimed: ready, or waiting", ["state"])
TRAINER_MIN_FEEDBACK = Gauge(
    "anyloop_trainer_min_feedback", "Ready feedback that starts a round once the log is quiet", registry=None
)
TRAINER_CHECKPOINT = Histogram(
    "anyloop_trainer_checkpoint_seconds", "Writing a checkpoint of a training under way", buckets=_PHASE
)
TRAINER_RESUMED = Counter("anyloop_trainer_resumed", "Trainings that went on from a checkpoint of a killed process")
TRAINER_GAP = Counter("anyloop_trainer_gap_records", "Records gone from the log before they were read", ["topic"])
TRAINER_FAILURES = Counter(
    "anyloop_trainer_failures", "Failed attempts of learner and gate, by cause (log, service, disk, round)", ["cause"]
)

# Controller
CONTROLLER_IS_LEADER = Gauge("anyloop_controller_is_leader", "1 while this controller holds the Lease", registry=None)
CONTROLLER_RECONCILE = Histogram(
    "anyloop_controller_reconcile_seconds", "One look at a PolicyRollout", buckets=_LATENCY
)
CONTROLLER_RECONCILE_ERRORS = Counter(
    "anyloop_controller_reconcile_errors", "Looks that failed and are tried again, by cause (api, log, bug)", ["kind"]
)
CONTROLLER_API_CALLS = Counter(
    "anyloop_controller_api_calls", "Calls to the Kubernetes API; a watch counts once", ["verb", "resource"]
)
ROLLOUT_REPLICAS = Gauge(
    "anyloop_rollout_replicas", "Ready replicas by the version that they serve", ["namespace", "name", "version"]
)
ROLLOUT_PHASE = Gauge("anyloop_rollout_phase", "1 for the present phase", ["namespace", "name", "phase"])
ROLLOUT_MIXED = Gauge(
    "anyloop_rollout_mixed_seconds", "How long replicas have served more than one version", ["namespace", "name"]
)
ROLLOUTS = Counter(
    "anyloop_rollouts", "Ended rollouts, by outcome (completed, rolled_back, superseded, aborted)", ["outcome"]
)

# Log
LOG_LAG = Gauge("anyloop_log_lag", "Records not yet committed by a consumer group", ["group", "topic"])
LOG_SPOOL_BYTES = Gauge("anyloop_log_spool_bytes", "Bytes in the local outbox that the log has not acknowledged")
LOG_SPOOL_OLDEST = Gauge(
    "anyloop_log_spool_oldest_seconds", "Age of the oldest event in the local outbox; 0 when the log has all"
)
LOG_SPOOL_FOUND = Counter(
    "anyloop_log_spool_found", "Events that a readback found in the log, so that they were not sent a second time"
)
UNLOGGED_RESPONSES = Counter(
    "anyloop_unlogged_responses", "Answers that were served although the outbox could not take their event"
)
LOG_APPENDED_EVENTS = Counter("anyloop_log_appended_events", "Events that a Kafka log has acknowledged", ["topic"])
LOG_APPEND_ERRORS = Counter("anyloop_log_append_errors", "Appends to a Kafka log that failed", ["topic", "error"])
LOG_APPEND = Histogram(
    "anyloop_log_append_seconds", "From an append to a Kafka log to its acknowledgement", ["topic"], buckets=_APPEND
)
AUDIT_FAILURES = Counter("anyloop_audit_failures", "Entries that the audit trail could not take")
KEYS_RELOADS = Counter("anyloop_keys_reloads", "Changes of the keys file, by outcome (done, failed)", ["outcome"])
DEAD_LETTERS = Counter("anyloop_dead_letters", "Records sent to a dead-letter topic", ["topic"])

VERSION = __version__  # not the distribution's: images have none
BUILD_INFO.labels(VERSION).set(1)


# A series that begins with its first event shows no increase to Prometheus, and an alert on a rare one would miss it:
# what alerts look at is there, at zero, from the start of the process.


def expect_model(model: str) -> None:
    """A replica of `model` serves in this process."""
    for code in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
        REQUEST_FAILURES.labels(model, code)
    for reason in ("stop", "length"):
        REQUEST_SUCCESS.labels(model, reason)
    for gauge in (NUM_REQUESTS_RUNNING, NUM_REQUESTS_WAITING):
        gauge.labels(model)
    SERVING.labels(model)
    SWAP_FAILURES.labels(model)


def expect_learner(topics: Iterable[str], min_feedback: int) -> None:
    """A trainer reads these topics in this process, and begins a round with `min_feedback`."""
    _show(TRAINER_MIN_FEEDBACK)
    TRAINER_MIN_FEEDBACK.set(min_feedback)
    for topic in topics:
        DEAD_LETTERS.labels(topic)
        TRAINER_GAP.labels(topic)
    _expect_causes()


def expect_gate() -> None:
    for outcome in ("promoted", "approved", "rejected"):
        GATE_DECISIONS.labels(outcome)
    _expect_causes()


def expect_gateway() -> None:
    _show(GATEWAY_READY)
    for outcome in ("done", "failed"):
        KEYS_RELOADS.labels(outcome)


def expect_controller() -> None:
    _show(CONTROLLER_IS_LEADER)
    for outcome in ("completed", "rolled_back", "superseded", "aborted"):
        ROLLOUTS.labels(outcome)


def _expect_causes() -> None:
    for cause in ("log", "service", "disk", "round"):
        TRAINER_FAILURES.labels(cause)


_shown: set[Gauge] = set()


def _show(gauge: Gauge) -> None:
    """Exports from now on what only one kind of process has."""
    if gauge not in _shown:
        _shown.add(gauge)
        REGISTRY.register(gauge)


_version_lock = threading.Lock()
_versions: dict[str, str] = {}


def set_policy_version(model_name: str, version: str) -> None:
    """Makes `version` the only one that `anyloop_policy_version_info` shows for the model."""
    with _version_lock:
        previous = _versions.get(model_name)
        if previous is not None and previous != version:
            POLICY_VERSION_INFO.remove(model_name, previous)
        POLICY_VERSION_INFO.labels(model_name, version).set(1)
        _versions[model_name] = version


def start_metrics_server(port: int, bind: str = "127.0.0.1") -> Callable[[], None]:
    """Serves `/metrics` on a thread; port 0 serves nothing. Returns what stops it. Raises OSError on a taken port."""
    if port == 0:
        return lambda: None
    server, thread = start_http_server(port, addr=bind)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
