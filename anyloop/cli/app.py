"""The command tree."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anyloop import __version__
from anyloop.cli import (
    audit,
    checkpoints,
    export,
    feedback,
    generate,
    importing,
    keys,
    log,
    rollouts,
    status,
    topics,
    up,
)
from anyloop.cli.demo import command as demo
from anyloop.cli.eval import command as evaluation
from anyloop.cli.exits import CommandError, ExitCode, as_command_error
from anyloop.cli.kafka import command as kafka
from anyloop.cli.output import errors
from anyloop.cli.replay import command as replay


class Program(TyperGroup):
    """Ends every command the same way: one sentence on stderr and an exit code that means something."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            errors.print("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except typer.Exit:
            raise
        except Exception as error:
            ended = error if isinstance(error, CommandError) else as_command_error(error)
            if ended is None:
                raise
            errors.print(f"[bold red]error:[/] {_plain(str(ended))}", highlight=False, soft_wrap=True)
            raise typer.Exit(ended.code) from error


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings come from ANYLOOP_* environment variables and .env. Exit codes: 0 done, 1 failed, 2 usage, "
    "3 unreachable, 4 not found, 5 refused, 130 interrupted.",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    home: Annotated[
        Path | None, typer.Option("--home", help="Folder of everything this machine writes (ANYLOOP_HOME).")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve an any-to-any model and keep aligning it from what people say about its answers."""
    if home is not None:
        os.environ["ANYLOOP_HOME"] = str(home.absolute())


app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("feedback")(feedback.feedback)
app.command("eval")(evaluation.evaluate)
app.command("status")(status.status)
app.add_typer(importing.app, name="import")
app.command("export")(export.export)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(rollouts.app, name="rollouts")
app.add_typer(topics.app, name="topics")
app.command("audit")(audit.audit)
app.add_typer(keys.app, name="keys")
app.add_typer(log.app, name="log")
app.command("kafka")(kafka.kafka)
app.command("replay")(replay.replay)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def run() -> None:
    app()
