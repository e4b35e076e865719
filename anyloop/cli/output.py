"""Where commands write: results on stdout (text for people or one JSON document), everything else on stderr."""

import json
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console

console = Console()
errors = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]


def print_json(document: Any) -> None:
    """Plain JSON, never wrapped or coloured: it may be piped."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def message_dict(message: Message) -> dict[str, Any]:
    """A protobuf message as its proto names say it, defaults left out."""
    return MessageToDict(message, preserving_proto_field_name=True)
