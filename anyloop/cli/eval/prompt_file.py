"""A JSONL file of one's own prompts: one object a line.

`prompt` (words) with optional `image`, `audio`, `video` (paths relative to the file), or `messages` as REST takes them
with media as `data:` URLs; optional `id`, `group`, `modalities` and `votes` (shares of annotators' votes by set of
modalities, as in {"text+image": 0.7, "image": 0.3}). All that is wrong is told at once, line by line.
"""

import base64
import binascii
import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyloop.cli.demo.asking import File
from anyloop.cli.eval.asking import Question, seed_of
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.evaluation.critic import Part, Turn
from anyloop.media.store import modality_of
from anyloop.modality import MEDIA_MODALITIES, Modality

_FIELDS = {"id", "group", "prompt", "messages", "modalities", "votes", *map(str, MEDIA_MODALITIES)}
_ROLES = ("system", "developer", "user", "assistant")
_SHOWN = 5  # complaints in one error


@dataclass(frozen=True)
class OwnPrompt:
    """A question with the votes over sets of modalities, where the file has them."""

    question: Question
    votes: Mapping[frozenset[Modality], float] | None


def read_prompts(path: Path, seed: int) -> list[OwnPrompt]:
    """Raises CommandError with the line and what to do."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 within a string
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or error}", ExitCode.USAGE
        ) from error
    prompts: dict[str, OwnPrompt] = {}
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = _prompt(json.loads(line), number, path, seed)
            if one.question.name in prompts:
                raise ValueError(f"the id {one.question.name!r} stands twice")
            prompts[one.question.name] = one
        except ValueError as error:  # a JSON error is one
            wrong.append(f"line {number}: {error}")
    if wrong:
        more = f" (and {len(wrong) - _SHOWN} more lines)" if len(wrong) > _SHOWN else ""
        raise CommandError(f"{path}: {'; '.join(wrong[:_SHOWN])}{more}", ExitCode.USAGE)
    if not prompts:
        raise CommandError(f'{path} holds no prompts: one JSON object a line, as {{"prompt": "..."}}', ExitCode.USAGE)
    return list(prompts.values())


def _prompt(record: Any, number: int, path: Path, seed: int) -> OwnPrompt:
    if not isinstance(record, dict):
        raise ValueError('a line is one JSON object, as {"prompt": "..."}')
    if stranger := sorted(record.keys() - _FIELDS):
        raise ValueError(f"unknown field {stranger[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    if ("prompt" in record) == ("messages" in record):
        raise ValueError("give 'prompt' or 'messages', one of the two")
    if "prompt" in record:
        if not isinstance(record["prompt"], str) or not record["prompt"].strip():
            raise ValueError("'prompt' is a text that says something")
        files = [_file(record[name], path.parent) for name in map(str, MEDIA_MODALITIES) if name in record]
        turns: tuple[Turn, ...] = (("user", (*files, record["prompt"])),)
    else:
        turns = tuple(map(_turn, _objects(record["messages"], "messages")))
    modalities = tuple(_modality(name) for name in _strings(record.get("modalities", []), "modalities"))
    name, group = str(record.get("id", f"line {number}")), str(record.get("group", "prompts"))
    question = Question(name, group, turns, modalities, seed_of(seed, name))
    return OwnPrompt(question, _votes(record["votes"]) if "votes" in record else None)


def _turn(message: dict[str, Any]) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ValueError(f"a message's role is one of {', '.join(_ROLES)}")
    if isinstance(content, str) and content.strip():
        return role, (content,)
    if not isinstance(content, list) or not content:
        raise ValueError("a message's content is a text or a list of content parts")
    return role, tuple(map(_part, _objects(content, "content")))


def _part(part: dict[str, Any]) -> Part:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    url = (part.get(str(kind)) or {}).get("url") if isinstance(part.get(str(kind)), dict) else None
    if kind not in ("image_url", "audio_url", "video_url") or not isinstance(url, str):
        raise ValueError(
            "a content part is {'type': 'text', 'text': ...} or {'type': 'image_url', 'image_url': {'url'}}"
        )
    head, comma, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise ValueError(f"the URL of a {kind} part is a base64 data: URL; name a file by 'image', 'audio' or 'video'")
    # The bare type: nothing reads parameters, and whatever stood in them would travel on.
    mime_type = head.removeprefix("data:").split(";")[0].strip().lower()
    try:
        return File(modality_of(mime_type), mime_type, base64.b64decode(data, validate=True))
    except binascii.Error as error:
        raise ValueError(f"the data: URL of a {kind} part is no base64: {error}") from error


def _file(name: Any, folder: Path) -> File:
    if not isinstance(name, str) or not name:
        raise ValueError("a medium is named by the path of its file")
    mime_type = mimetypes.guess_type(name)[0]
    if mime_type is None:
        raise ValueError(f"{name} has no ending that tells what it is: use .png, .wav, .mp4 or the like")
    try:
        return File(modality_of(mime_type), mime_type, (folder / name).read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {folder / name}: {error.strerror}") from error


def _votes(given: Any) -> Mapping[frozenset[Modality], float]:
    if not isinstance(given, dict) or not all(isinstance(share, int | float) for share in given.values()):
        raise ValueError('votes are shares by set of modalities, as in {"text+image": 0.7, "image": 0.3}')
    votes = {frozenset(map(_modality, name.split("+"))): float(share) for name, share in given.items()}
    if len(votes) < len(given) or any(share < 0 for share in votes.values()) or not 0 < sum(votes.values()) <= 1.0001:
        raise ValueError("the shares of votes are not negative, each set stands once, and they add up to 1 at most")
    return votes


def _modality(name: str) -> Modality:
    try:
        return Modality(name.strip())
    except ValueError:
        raise ValueError(f"{name!r} is no modality: use {', '.join(Modality)}") from None


def _objects(value: Any, name: str) -> Sequence[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"'{name}' is a list of JSON objects, and not empty")
    return value


def _strings(value: Any, name: str) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"'{name}' is a list of names")
    return value
