"""Learning: what people say, what is made of it, and when it is in service."""

from typing import Any

from anyloop.telemetry.dashboards.panels import NS, RED, YELLOW, Panel, dashboard, graph, heat, number, row


def learning() -> dict[str, Any]:
    panels = [*_now(), *_feedback(), *_rounds(), *_gate(), *_care()]
    about = "From feedback to weights in service that learned from it."
    return dashboard("anyloop-learning", "AnyLoop / Learning", about, panels)


def _now() -> list[Panel]:
    return [
        row("Now"),
        number(
            "Feedback to serving, p90 of a day",
            "Of feedback that was learned from. Objective: 90 % within 30 minutes.",
            f"max(anyloop:feedback_to_serving_seconds:p90_1d{{{NS}}})",
            unit="s",
            steps=[(1200, YELLOW), (1800, RED)],
            empty="nothing promoted in a day",
        ),
        number(
            "Feedback today",
            "Accepted in 24 hours. One event may carry several kinds; it counts for each.",
            f"sum(increase(anyloop_feedback_events_total{{{NS}}}[1d]))",
            base="blue",
            decimals=0,
        ),
        number(
            "Ready to be learned from",
            "Joined with its answer, and claimed by no round.",
            f'sum(anyloop_trainer_feedback{{{NS}, state="ready"}})',
            base="blue",
            empty="no trainer",
        ),
        number(
            "Waits for its answer",
            "Feedback on an answer that the trainer has not read yet.",
            f'sum(anyloop_trainer_feedback{{{NS}, state="waiting"}})',
            steps=[(100, YELLOW)],
            empty="no trainer",
        ),
        number(
            "Promoted today",
            "Candidates that the gate let pass.",
            f'sum(increase(anyloop_gate_decisions_total{{{NS}, outcome=~"promoted|approved"}}[1d]))',
            base="blue",
            decimals=0,
        ),
        number(
            "Dead letters today",
            "`anyloop log read responses.dlq` says what and why.",
            f"sum(increase(anyloop_dead_letters_total{{{NS}}}[1d]))",
            steps=[(1, YELLOW)],
            decimals=0,
        ),
    ]


def _feedback() -> list[Panel]:
    return [
        row("Feedback"),
        graph(
            "What people say",
            "By what it carries, per hour.",
            [(f"sum by (kind) (3600 * rate(anyloop_feedback_events_total{{{NS}}}[15m]))", "{{kind}}")],
            stack=True,
        ),
        graph(
            "Lag of the trainer",
            "Records of the log that it has not committed. It grows during a round and falls behind it.",
            [(f'sum by (topic) (anyloop_log_lag{{{NS}, group="anyloop.trainer"}})', "{{topic}}")],
        ),
        graph(
            "Left out, by reason",
            "Feedback, or parts of it, not learned from as it stands.",
            [(f"sum by (reason) (increase(anyloop_trainer_left_out_total{{{NS}}}[1h]))", "{{reason}}")],
            stack=True,
        ),
    ]


def _rounds() -> list[Panel]:
    return [
        row("Rounds"),
        heat(
            "Feedback to serving",
            "From a piece of feedback to weights in service that learned from it.",
            f"sum by (le) (increase(anyloop_feedback_to_serving_seconds_bucket{{{NS}}}[$__rate_interval]))",
            width=12,
        ),
        graph(
            "Time of a round's phases",
            "Mean of the phases that ended within the hour.",
            [
                (
                    f"sum by (phase) (increase(anyloop_trainer_step_seconds_sum{{{NS}}}[1h])) "
                    f"/ sum by (phase) (increase(anyloop_trainer_step_seconds_count{{{NS}}}[1h]))",
                    "{{phase}}",
                )
            ],
            unit="s",
            width=12,
            stack=True,
        ),
        graph(
            "Failed attempts",
            "Of learner and gate, by cause, in half an hour. They are repeated; nothing is lost.",
            [(f"sum by (cause) (increase(anyloop_trainer_failures_total{{{NS}}}[30m]))", "{{cause}}")],
        ),
        graph(
            "Checkpoints of trainings",
            "Time to write one (p95), and trainings that went on from one.",
            [
                (
                    "histogram_quantile(0.95, sum by (le) "
                    f"(increase(anyloop_trainer_checkpoint_seconds_bucket{{{NS}}}[1h])))",
                    "seconds, p95",
                ),
                (f"sum(increase(anyloop_trainer_resumed_total{{{NS}}}[1h]))", "resumed"),
            ],
        ),
        graph(
            "Trainer beside engine",
            "How far they are apart about the same tokens. Above the line PPO and GRPO learn from wrong ratios.",
            [(f"max by (kind) (anyloop_trainer_logprob_mismatch{{{NS}}})", "{{kind}}")],
            limit=0.1,
        ),
    ]


def _gate() -> list[Panel]:
    return [
        row("Gate"),
        graph(
            "Decisions in a day",
            "Promoted, approved (a rollout decides), rejected.",
            [(f"sum by (outcome) (increase(anyloop_gate_decisions_total{{{NS}}}[1d]))", "{{outcome}}")],
            width=12,
            stack=True,
        ),
        graph(
            "Forgotten",
            "Kinds of held-out work that a round's training made worse by more than chance, in a day.",
            [(f"sum(increase(anyloop_trainer_forgotten_total{{{NS}}}[1d]))", "kinds of work")],
            width=12,
        ),
    ]


def _care() -> list[Panel]:
    return [
        row("Who is heard, and what is lost"),
        graph(
            "Largest share of one principal",
            "Of the weight in the last round, after the cap.",
            [(f"max by (of) (anyloop_trainer_principal_share_ratio{{{NS}}})", "{{of}}")],
            unit="percentunit",
            limit=0.5,
        ),
        graph(
            "Dead letters",
            "Records set aside because they cannot be read or used, in an hour.",
            [(f"sum by (topic) (increase(anyloop_dead_letters_total{{{NS}}}[1h]))", "{{topic}}")],
        ),
        graph(
            "Gaps",
            "Records that retention removed before the trainer read them: always zero, or retention is too short.",
            [(f"sum by (topic) (increase(anyloop_trainer_gap_records_total{{{NS}}}[1h]))", "{{topic}}")],
        ),
    ]
