"""From what the operator typed to a plan, and from the plan to a folder in which the replay can learn."""

import shutil
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.progress import Progress

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.looking import opened_to_look
from anyloop.cli.records import point_in_time
from anyloop.cli.replay import selection
from anyloop.cli.replay.home import prepare, starting_versions
from anyloop.cli.replay.learning import check_settings
from anyloop.cli.replay.plan import Plan
from anyloop.config import Settings
from anyloop.log import FEEDBACK, RESPONSES, EventLog, LogError, UnknownTopic
from anyloop.registry import Registry


def prepared(
    live: Settings, private: Settings, plan: Plan | None, lineage: str, asked: dict[str, Any], suite: str, screen: Any
) -> Plan:
    """The plan, new where there is none, and its folder ready to learn in. Raises CommandError."""
    with opened_to_look(live.effective_log_url) as source:
        try:
            if plan is None:
                plan = _new_plan(live, source, lineage, asked, suite)
                plan.save(private.home)
            elif plan.log != live.effective_log_url:
                raise CommandError(
                    f"the replay into {lineage} was begun on {plan.log}, the settings now name "
                    f"{live.effective_log_url}: set ANYLOOP_LOG_URL back, or remove {private.home}",
                    ExitCode.REFUSED,
                )
            with Progress(console=screen, transient=True) as progress:
                bar = progress.add_task("Reading the log", total=None)
                prepare(
                    live,
                    private,
                    plan,
                    source,
                    _age(plan.asked["lookback"]),
                    lambda done, total: progress.update(bar, completed=done, total=total),
                )
        except UnknownTopic as error:
            raise CommandError(f"{error}: nothing was ever logged here", ExitCode.NOT_FOUND) from error
        except LogError as error:
            raise CommandError(str(error), ExitCode.UNREACHABLE) from error
        except CommandError as error:
            if error.code == ExitCode.NOT_FOUND:
                shutil.rmtree(private.home, ignore_errors=True)  # another choice may find something
            raise
    return plan


def _new_plan(live: Settings, source: EventLog, lineage: str, asked: dict[str, Any], suite: str) -> Plan:
    if not asked["from"]:
        raise CommandError(
            "say where to begin: --from 2h, --from 2026-01-31, --from 0@120 (PARTITION@OFFSET), or --from beginning",
            ExitCode.USAGE,
        )
    settings = dict(_assignment(one) for one in asked["set"] or [])
    defaults = {"algorithm": "dpo", "rounds": 1, "lookback": "7d"}
    asked = asked | {name: asked[name] or value for name, value in defaults.items()}
    check_settings(asked["algorithm"], settings)
    _age(asked["lookback"])
    registry = Registry(live.effective_registry_dir)
    if there := registry.versions(lineage):
        raise CommandError(
            f"{there[-1]} is in the registry, but {live.home} has no replay of that name: choose another --into",
            ExitCode.REFUSED,
        )
    ends = source.end_offsets(FEEDBACK)
    end = selection.offsets_at(source, FEEDBACK, selection.point(asked["to"]), ends) if asked["to"] else ends
    zero = dict.fromkeys(ends, 0)
    begin = selection.offsets_at(source, FEEDBACK, selection.point(asked["from"]), zero)
    policy, critic = starting_versions(registry, source, begin, end, asked["base"])
    return Plan(
        lineage=lineage,
        algorithm=asked["algorithm"],
        rounds=asked["rounds"],
        log=live.effective_log_url,
        base=policy.version,
        critique=critic.version,
        gate_suite=suite,
        begin={FEEDBACK: _texts(begin)},
        end={FEEDBACK: _texts(end), RESPONSES: _texts(source.end_offsets(RESPONSES))},
        settings=settings,
        asked=asked,
    )


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"--set {text}: write NAME=VALUE, for example --set dpo_lr=1e-4", ExitCode.USAGE)
    return name, value


def _age(text: str) -> timedelta:
    return datetime.now(UTC) - point_in_time(text)


def _texts(offsets: dict[int, int]) -> dict[str, int]:
    return {str(part): offset for part, offset in offsets.items()}
