"""Rollout: which weights serve where, what a new version does to answers, and how the controller is."""

from typing import Any

from anyloop.telemetry.dashboards.panels import (
    IN_SERVICE,
    NS,
    RED,
    SERVING,
    YELLOW,
    Panel,
    dashboard,
    graph,
    names,
    number,
    quantile,
    row,
)

_POLICY = f'{SERVING}, model_name="policy"'
# A replica's figures, with the version that it serves as a label.
_BY_VERSION = f"* on (namespace, pod, instance) group_left (version) (anyloop_policy_version_info{{{_POLICY}}} == 1)"
_LEADER = f"anyloop_controller_is_leader{{{NS}}}"  # only a controller exports it


def rollout() -> dict[str, Any]:
    panels = [*_now(), *_fleet(), *_canary(), *_swaps(), *_controller()]
    about = "Weights on their way through the fleet."
    return dashboard("anyloop-rollout", "AnyLoop / Rollout", about, panels, refresh="10s")


def _now() -> list[Panel]:
    return [
        row("Now"),
        names(
            "In service",
            "Replicas by the version that they serve.",
            IN_SERVICE,
            "{{version}}",
            empty="no policy serves",
        ),
        names(
            "Phase",
            "Of each PolicyRollout.",
            f"max by (name, phase) (anyloop_rollout_phase{{{NS}}} == 1)",
            "{{name}}: {{phase}}",
            empty="no rollout",
        ),
        number(
            "Fleet mixed for",
            "Since when two versions have served side by side.",
            f"max(anyloop_rollout_mixed_seconds{{{NS}}})",
            unit="s",
            steps=[(3600, YELLOW), (7200, RED)],
            empty="no rollout",
        ),
        number(
            "Leaders",
            "Controllers that hold the lease: exactly one.",
            f"sum({_LEADER})",
            base=RED,
            steps=[(1, "green"), (2, RED)],
            empty="no controller",
        ),
    ]


def _fleet() -> list[Panel]:
    return [
        row("The fleet"),
        graph(
            "Replicas by version",
            "As the replicas say it themselves.",
            [(IN_SERVICE, "{{version}}")],
            width=12,
            stack=True,
            lines="stepAfter",
        ),
        graph(
            "Replicas by version, as rollouts see them",
            "As the controller last heard from them.",
            [(f"sum by (name, version) (anyloop_rollout_replicas{{{NS}}})", "{{name}} {{version}}")],
            width=12,
            stack=True,
            lines="stepAfter",
        ),
    ]


def _canary() -> list[Panel]:
    failures = 'code!~"CANCELLED|INVALID_ARGUMENT|NOT_FOUND|RESOURCE_EXHAUSTED"'

    def per_version(metric: str, extra: str = "", by: str = "version") -> str:
        keep = "namespace, pod, instance" + (", le" if "le" in by else "")
        inside = f"sum by ({keep}) (rate({metric}{{{_POLICY}{extra}}}[5m]))"
        return f"sum by ({by}) ({inside} {_BY_VERSION})"

    def p95(metric: str) -> str:
        return f"histogram_quantile(0.95, {per_version(metric + '_bucket', by='version, le')})"

    failed = per_version("anyloop_request_failures_total", f", {failures}")
    return [
        row("New beside stable"),
        graph(
            "Error rate by version",
            "Failures that are the replica's own.",
            [(f"{failed} / ({failed} + {per_version('anyloop_request_success_total')})", "{{version}}")],
            unit="percentunit",
        ),
        graph(
            "First token by version, p95",
            "A version that is slower shows here.",
            [(p95("anyloop_time_to_first_token_seconds"), "{{version}}")],
            unit="s",
        ),
        graph(
            "Answers by version",
            "Requests a second that each version ends. Too few say little about the two figures beside.",
            [(per_version("anyloop_request_success_total"), "{{version}}")],
            unit="reqps",
        ),
    ]


def _swaps() -> list[Panel]:
    return [
        row("Swaps"),
        graph(
            "Swaps",
            "Weights exchanged, by replica, in five minutes.",
            [(f"increase(anyloop_swap_stall_seconds_count{{{_POLICY}}}[5m])", "{{pod}} {{instance}}")],
        ),
        graph(
            "Stall of a swap, p99",
            "How long no decode step ran. Above the line an alert fires.",
            [
                (
                    "histogram_quantile(0.99, sum by (model_name, le) "
                    f"(increase(anyloop_swap_stall_seconds_bucket{{{SERVING}}}[1h])))",
                    "{{model_name}}",
                )
            ],
            unit="s",
            limit=1,
        ),
        graph(
            "Swaps refused",
            "Weights that a replica could not verify or load. It serves the ones before.",
            [(f"increase(anyloop_swap_failures_total{{{NS}}}[15m])", "{{model_name}} {{pod}} {{instance}}")],
        ),
    ]


def _controller() -> list[Panel]:
    return [
        row("Controller"),
        graph(
            "Rollouts ended, in a day",
            "Completed, rolled back, superseded by another promotion, aborted.",
            [(f"sum by (outcome) (increase(anyloop_rollouts_total{{{NS}}}[1d]))", "{{outcome}}")],
            stack=True,
        ),
        graph(
            "Reconcile, p95",
            "One look at one rollout.",
            [(quantile(0.95, "anyloop_controller_reconcile_seconds", NS), "p95")],
            unit="s",
        ),
        graph(
            "Errors",
            "By kind; repeated with growing patience.",
            [(f"sum by (kind) (rate(anyloop_controller_reconcile_errors_total{{{NS}}}[5m]))", "{{kind}}")],
            unit="ops",
        ),
        graph(
            "Calls to the API server",
            "Writes only where something changed; watches instead of polls.",
            [
                (
                    f"sum by (verb, resource) (rate(anyloop_controller_api_calls_total{{{NS}}}[5m]))",
                    "{{verb}} {{resource}}",
                )
            ],
            unit="reqps",
            width=12,
            stack=True,
        ),
        graph(
            "Leader",
            "Which controller holds the lease.",
            [(_LEADER, "{{pod}} {{instance}}")],
            width=12,
            lines="stepAfter",
        ),
    ]
