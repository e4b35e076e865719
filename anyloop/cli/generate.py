"""`anyloop generate`: one prompt, one answer, media into files."""

import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings
from anyloop.modality import Modality

if TYPE_CHECKING:
    from anyloop.cli.rest import GatewayClient, MediaPart, Reply

Url = Annotated[str, typer.Option("--url", help="The gateway (default: the one `anyloop up` runs here).")]
Key = Annotated[str, typer.Option("--key", envvar="ANYLOOP_API_KEY", help="API key.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[list[Path] | None, typer.Option(help="Send this picture along (repeatable).")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="Send this sound along (repeatable).")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="Send this video along (repeatable).")] = None,
    modality: Annotated[
        list[Modality] | None, typer.Option("-m", help="What the answer may contain (repeatable; default: anything).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the media of the answer.")] = Path(),
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same version, same answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    url: Url = "",
    key: Key = "",
    as_json: JsonFlag = False,
) -> None:
    """Ask the policy, print its words as they come, write its media into files. The id is what `feedback` takes."""
    from anyloop.cli.rest import GatewayClient, file_part, text_part
    from anyloop.cli.runfile import gateway_url

    content = [text_part(prompt)]
    for kind, paths in ((Modality.IMAGE, image), (Modality.AUDIO, audio), (Modality.VIDEO, video)):
        content += [file_part(kind, path) for path in paths or []]
    options: dict[str, Any] = {
        "modalities": [str(name) for name in modality] if modality else None,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "max_completion_tokens": max_tokens,
    }
    with GatewayClient(gateway_url(Settings(), url), key=key) as client:
        reply = client.chat(content, **options) if as_json else _stream(client, content, options)
        files = [_save(client, part, out / f"{reply.id}-{n}") for n, part in enumerate(reply.media)]
    if as_json:
        print_json(
            {
                "id": reply.id,
                "version": reply.version,
                "text": reply.text,
                "files": [str(path) for path in files],
                "finish_reason": reply.finish_reason,
                "completion_tokens": reply.completion_tokens,
            }
        )
        return
    for path in files:
        console.print(f"wrote {path}", highlight=False)
    errors.print(f"[dim]{reply.id} by {reply.version}[/]", highlight=False)


def _stream(client: "GatewayClient", content: list[dict[str, Any]], options: dict[str, Any]) -> "Reply":
    from anyloop.cli.rest import Reply, media_of

    reply_id = version = finish = ""
    text: list[str] = []
    media: list[MediaPart] = []
    tokens = 0
    for chunk in client.chat_stream(content, **options):
        reply_id, version = chunk.get("id") or reply_id, chunk.get("system_fingerprint") or version
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        for choice in chunk.get("choices", []):
            delta = choice.get("delta") or {}
            if isinstance(delta.get("content"), str):
                text.append(delta["content"])
                typer.echo(delta["content"], nl=False)
            media += [media_of(part) for part in delta.get("content_parts") or [] if part["type"] != "text"]
            finish = choice.get("finish_reason") or finish
    if text:
        typer.echo()
    return Reply(reply_id, version, "".join(text), tuple(media), finish, tokens)


def _save(client: "GatewayClient", part: "MediaPart", stem: Path) -> Path:
    data = client.fetch(part.url)
    suffix = {Modality.IMAGE: ".png", Modality.AUDIO: ".wav", Modality.VIDEO: ".mp4"}[part.modality]
    path = stem.with_name(stem.name + (mimetypes.guess_extension(part.mime_type) or suffix))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
