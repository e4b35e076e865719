"""`anyloop eval`: how good a version is, by subtask and dimension, in the paper's scores, and against another."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.generate import Key, Url
from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings

if TYPE_CHECKING:
    from anyloop.cli.eval.plan import Measured, Plan
    from anyloop.cli.eval.prompt_file import OwnPrompt
    from anyloop.evaluation.critic import Critic
    from anyloop.evaluation.duel import Duel

_MOST_PROMPTS = 10_000


def evaluate(
    prompts: Annotated[
        str, typer.Option(metavar="N|FILE", help="Prompts per subtask, or a JSONL file of your own prompts.")
    ] = "25",
    split: Annotated[
        Literal["train", "gate", "heldout"], typer.Option(help="Which combinations of the reference world.")
    ] = "heldout",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same prompts and sampling seeds.")] = 0,
    samples: Annotated[int, typer.Option(min=1, max=100, help="Answers to each prompt.")] = 1,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Of the answers (default: served).")] = None,
    amu: Annotated[int, typer.Option(min=0, help="Understanding items per category (AMU); 0: leave it out.")] = 0,
    amg: Annotated[int, typer.Option(min=0, help="Open prompts per kind (AMG); 0: leave it out.")] = 0,
    judge: Annotated[
        Literal["world", "critique"] | None,
        typer.Option(help="Exactly, by the reference world, or by the critique model (default for your own prompts)."),
    ] = None,
    version: Annotated[str, typer.Option(help="Ask this version, not the one in service.")] = "",
    against: Annotated[
        str, typer.Option(metavar="VERSION", help="Ask this one the same prompts with the same seeds: who wins?")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of eval.json and eval.html, a page with samples.")] = None,
    fail_under: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 1 when the mean success is below this.")
    ] = None,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="With --against: exit with 1 when that version is surely better.")
    ] = False,
    url: Url = "",
    key: Key = "",
    as_json: JsonFlag = False,
) -> None:
    """Ask the gateway prompts and judge the answers. Nothing of it is logged, so nothing can learn from it.

    Prompts of the reference world are judged exactly, on pixels, samples, frames and words; your own by the critique
    model. Intervals are of 95 %. A version that is not in service is loaded beside it while it is asked.
    """
    from anyloop.cli.eval.document import document
    from anyloop.cli.eval.page import page
    from anyloop.cli.eval.tables import show, show_duel
    from anyloop.evaluation.critic import CriticError

    plan, own = _plan(prompts, split, seed, samples, temperature, amu, amg, judge)
    if fail_if_worse and not against:
        raise CommandError("--fail-if-worse compares with another version: add --against VERSION", ExitCode.USAGE)
    if against and against == version:
        raise CommandError(f"{version} against itself shows nothing: name two versions", ExitCode.USAGE)
    for name in filter(None, (version, against)):
        if not name.startswith("policy-"):
            way = f"`anyloop checkpoints diff {version or 'A'} {against or 'B'} --evaluate` asks any two versions"
            raise CommandError(f"{name} is no policy version, and the gateway serves no others: {way}", ExitCode.USAGE)
    if out is not None:
        _check(out)
    try:
        measured = _measure(plan, own, (version, against) if against else (version,), url, key)
    except CriticError as error:
        code = ExitCode.UNREACHABLE if error.away else ExitCode.REFUSED
        raise CommandError(f"{error}. It judges where --judge is critique", code) from error
    ours, theirs = measured[0], measured[1] if against else None
    if theirs is not None and ours.versions == theirs.versions:
        raise _same(ours.name)
    duels = _duels(ours, theirs) if theirs is not None else {}
    found = document(plan, ours, theirs, duels)
    if as_json:
        print_json(found)
    else:
        for one in measured:
            show(console, one)
        if theirs is not None:
            show_duel(console, ours, theirs, duels)
    if out is not None:  # after the figures are shown: a full disk costs the page, not the evaluation
        _write(out / "eval.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        _write(out / "eval.html", page(plan, ours, theirs, duels))
        errors.print(
            f"wrote {out / 'eval.html'} and {out / 'eval.json'}", highlight=False, markup=False, soft_wrap=True
        )
    _verdict(ours, theirs, duels, fail_under, fail_if_worse)


def _plan(
    prompts: str,
    split: Literal["train", "gate", "heldout"],
    seed: int,
    samples: int,
    temperature: float | None,
    amu: int,
    amg: int,
    judge: Literal["world", "critique"] | None,
) -> tuple["Plan", list["OwnPrompt"]]:
    """Raises CommandError (usage) before anything is asked."""
    from anyloop.cli.eval.plan import Plan
    from anyloop.cli.eval.prompt_file import read_prompts

    number = int(prompts) if prompts.removeprefix("-").isdecimal() else None
    if number is not None:
        if not 1 <= number <= _MOST_PROMPTS:
            raise CommandError(f"--prompts {number}: give 1 to {_MOST_PROMPTS} prompts per subtask", ExitCode.USAGE)
        return Plan(number, split, seed, samples, temperature, amu, amg, judge or "world"), []
    if judge == "world":
        raise CommandError("the reference world judges only its own prompts: leave --judge out", ExitCode.USAGE)
    path = Path(prompts)
    return Plan(path, split, seed, samples, temperature, amu, amg, "critique"), read_prompts(path, seed)


def _measure(
    plan: "Plan", own: list["OwnPrompt"], versions: tuple[str, ...], url: str, key: str
) -> tuple["Measured", ...]:
    """Every version on the same questions. Raises RequestFailed, CriticError."""
    from rich.progress import Progress

    from anyloop.cli.eval.measure import Measurement, answers_asked
    from anyloop.cli.eval.staging import serving_version, staged
    from anyloop.cli.rest import GatewayClient
    from anyloop.cli.runfile import gateway_url

    settings = Settings()
    address = gateway_url(settings, url)
    here = address == gateway_url(settings)  # the control address in the settings belongs to that gateway
    if here and "" in versions and (serving := serving_version(settings)) in versions:
        raise _same(str(serving))
    total = answers_asked(plan, own)
    with (
        GatewayClient(address, key=key) as client,
        staged(settings, versions) if here else nullcontext(),
        _critic(settings, plan) as critic,
        Progress(console=errors) as progress,
    ):
        measured = []
        for version in versions:
            bar = progress.add_task(f"Evaluating {version or 'what serves'}", total=total)
            asked = Measurement(client, plan, own, critic, version, lambda bar=bar: progress.advance(bar))  # type: ignore[misc]
            measured.append(asked.run())
        return tuple(measured)


@contextmanager
def _critic(settings: Settings, plan: "Plan") -> Iterator["Critic | None"]:
    """The critique model as a judge, where the plan wants it."""
    if plan.judge != "critique":
        yield None
        return
    from anyloop.cli.runfile import setting
    from anyloop.evaluation.critic import Critic
    from anyloop.media.store import MediaStore

    media = MediaStore(settings.effective_media_url)
    with Critic(setting(settings, "critique_target"), media, settings=settings) as critic:
        yield critic


def _same(version: str) -> CommandError:
    return CommandError(
        f"{version} is in service, so it would be compared with itself: name another with --version or --against",
        ExitCode.USAGE,
    )


def _duels(ours: "Measured", theirs: "Measured") -> Mapping[str, "Duel"]:
    """All prompts first, then by subtask."""
    from anyloop.evaluation.duel import duel

    names = list(ours.scores)
    groups = [ours.scores[name][0] for name in names]

    def of(chosen: list[int]) -> "Duel":
        return duel(
            [groups[n] for n in chosen],
            [ours.scores[names[n]][1] for n in chosen],
            [theirs.scores[names[n]][1] for n in chosen],
        )

    every = list(range(len(names)))
    by_group = {group: [n for n in every if groups[n] == group] for group in dict.fromkeys(groups)}
    return {"all prompts": of(every), **{group: of(chosen) for group, chosen in by_group.items()}}


def _check(out: Path) -> None:
    """Makes the folder and writes in it, before anything is asked. Raises CommandError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise CommandError(f"Cannot write {out}: {error.strerror}; choose another --out") from error


def _write(path: Path, text: str) -> None:
    """All of it or nothing: an older file stays until the new one is whole. Raises CommandError."""
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Half of a surrogate pair, which a model may say, is no UTF-8.
        whole.write_text(text, encoding="utf-8", errors="replace")
        whole.replace(path)
    except OSError as error:
        whole.unlink(missing_ok=True)
        raise CommandError(f"Cannot write {path}: {error.strerror}; choose another --out") from error


def _verdict(
    ours: "Measured",
    theirs: "Measured | None",
    duels: Mapping[str, "Duel"],
    fail_under: float | None,
    fail_if_worse: bool,
) -> None:
    """Raises CommandError (exit code 1) when the caller's bound is not met."""
    mean = ours.success.mean.value
    if fail_under is not None and mean < fail_under:
        raise CommandError(f"{ours.name}: mean success {mean:.1%} is below --fail-under {fail_under:.1%}")
    if fail_if_worse and theirs is not None and duels["all prompts"].decided.high < 0.5:
        raise CommandError(f"{theirs.name} is better than {ours.name}")
