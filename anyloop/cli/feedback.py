"""`anyloop feedback`: say what is wrong with an answer."""

from typing import Annotated, Any

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.generate import Key, Url
from anyloop.cli.output import JsonFlag, console, print_json
from anyloop.config import Settings


def feedback(
    response_id: Annotated[str, typer.Argument(help="The id that `generate` printed.")],
    critique: Annotated[str, typer.Option(help="What is wrong, in words.")] = "",
    refinement: Annotated[str, typer.Option(help="How the answer should have been.")] = "",
    rating: Annotated[
        list[str] | None, typer.Option(help="0.7 for the whole, or DIMENSION=0.2 (repeatable), 0 to 1.")
    ] = None,
    label: Annotated[bool | None, typer.Option("--good/--bad", help="A plain verdict.")] = None,
    preferred_over: Annotated[str, typer.Option(help="Another response id that is worse.")] = "",
    comparison: Annotated[str, typer.Option(help="In words, how it compares with --preferred-over.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Free label (repeatable).")] = None,
    idempotency_key: Annotated[str, typer.Option(help="The same key is counted once, however often it is sent.")] = "",
    dry_run: Annotated[bool, typer.Option(help="Check only; nothing is stored.")] = False,
    url: Url = "",
    key: Key = "",
    as_json: JsonFlag = False,
) -> None:
    """Give feedback on a response, in words or numbers. It is in the log when the command returns."""
    from anyloop.cli.rest import GatewayClient
    from anyloop.cli.runfile import gateway_url

    said: dict[str, Any] = {
        "critique": critique or None,
        "refinement": refinement or None,
        "rating": ratings(rating or []),
        "label": label,
        "preferred_over": preferred_over or None,
        "comparison": comparison or None,
        "tags": tag or None,
    }
    if all(value is None for value in said.values()):
        raise CommandError("Nothing said: give --critique, --rating, --good, --bad or another kind", ExitCode.USAGE)
    statement = {"response_id": response_id, **said, "idempotency_key": idempotency_key or None}
    body = {name: value for name, value in statement.items() if value is not None}
    if dry_run:
        body["dry_run"] = True
    with GatewayClient(gateway_url(Settings(), url), key=key) as client:
        accepted = client.feedback(body)
    if as_json:
        print_json(accepted)
    else:
        console.print("It would be accepted." if dry_run else f"accepted as {accepted.get('id', '')}", highlight=False)


def ratings(given: list[str]) -> float | dict[str, float] | None:
    """`["0.7"]` is the whole; `["colour=0.2", "0.7"]` is by dimension, bare numbers `overall`. Raises CommandError."""
    parsed: dict[str, float] = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise CommandError(f"--rating {text!r}: use 0.7 or colour=0.2", ExitCode.USAGE) from error
        if not 0 <= value <= 1:
            raise CommandError(f"--rating {text!r}: a rating is a number from 0 to 1", ExitCode.USAGE)
        parsed[name if equals else "overall"] = value
    return parsed["overall"] if parsed.keys() == {"overall"} else parsed or None
