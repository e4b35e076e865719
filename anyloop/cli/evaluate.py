"""`anyloop eval`: how often the version in service is right, by subtask."""

from typing import Annotated, Literal

import typer
from rich.progress import Progress
from rich.table import Table

from anyloop.cli.generate import Key, Url
from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings


def evaluate(
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per subtask.")] = 25,
    split: Annotated[
        Literal["train", "gate", "heldout"], typer.Option(help="Which combinations of the reference world.")
    ] = "heldout",
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0,
    url: Url = "",
    key: Key = "",
    as_json: JsonFlag = False,
) -> None:
    """Ask the gateway prompts of the reference world and judge the answers exactly. Nothing of it is logged."""
    from anyloop.cli.demo import evaluation
    from anyloop.cli.rest import GatewayClient
    from anyloop.cli.runfile import gateway_url

    asked = evaluation.questions(split, prompts, seed)
    with GatewayClient(gateway_url(Settings(), url), key=key) as client, Progress(console=errors) as progress:
        bar = progress.add_task("Evaluating", total=len(asked))
        result = evaluation.evaluate(client, asked, on_answer=lambda _: progress.advance(bar))
    if as_json:
        print_json(
            {
                "versions": list(result.versions),
                "split": split,
                "seed": seed,
                "mean": result.mean,
                "standard_error": result.standard_error,
                "subtasks": {
                    name: {"right": score.right, "asked": score.asked, "rate": score.rate}
                    for name, score in result.scores.items()
                },
            }
        )
        return
    table = Table("subtask", "right", "asked", "rate", box=None, title=", ".join(result.versions))
    for name, score in result.scores.items():
        table.add_row(name, str(score.right), str(score.asked), f"{score.rate:.0%}")
    table.add_row("[bold]mean[/]", "", "", f"[bold]{result.mean:.1%}[/] ± {result.standard_error:.1%}")
    console.print(table)
