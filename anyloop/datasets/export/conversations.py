"""Messages in the conversational form of TRL: text as a string, or, where there are media, content parts.

A part is `{"type": "text", "text": …}` or `{"type": "image"}` (audio, video): the media themselves stand in the columns
`images`, `audios` and `videos` of the row, in the order of their parts, as TRL's vision-language format wants it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from anyloop.datasets.export.examples import Critique, Label, Preference
from anyloop.modality import MEDIA_MODALITIES, Modality
from anyloop.sequence import templates
from protos.anyloop.v1 import types_pb2

Row = dict[str, Any]
Place = Callable[[types_pb2.MediaRef], Any]  # a medium as a column holds it

COLUMNS = {Modality.IMAGE: "images", Modality.AUDIO: "audios", Modality.VIDEO: "videos"}
_ROLES = {types_pb2.ROLE_SYSTEM: "system", types_pb2.ROLE_USER: "user", types_pb2.ROLE_ASSISTANT: "assistant"}
_NAMES = {types_pb2.Modality.Value(f"MODALITY_{one.name}"): one for one in MEDIA_MODALITIES}


def media_columns(set_name: str) -> tuple[str, ...]:
    """The columns of media that a set's rows have; none for the sets of text."""
    if set_name.endswith("_images"):
        return (COLUMNS[Modality.IMAGE],)
    return tuple(COLUMNS.values()) if set_name.endswith("_media") else ()


def preference_set(pair: Preference) -> str:
    """`preference` (text only), `preference_images` (images in the prompt, text in the answers: what vision-language
    trainers take), or `preference_media`."""
    prompt = _modalities(pair.prompt)
    answers = _modalities((pair.chosen, pair.rejected))
    if not prompt | answers:
        return "preference"
    return "preference_images" if prompt == {Modality.IMAGE} and not answers else "preference_media"


def preference_row(pair: Preference, place: Place) -> Row:
    columns = media_columns(preference_set(pair))
    row: Row = {
        "prompt": [_turn(one, columns) for one in pair.prompt],
        "chosen": [_turn(pair.chosen, columns)],
        "rejected": [_turn(pair.rejected, columns)],
    }
    messages = (*pair.prompt, pair.chosen, pair.rejected)
    return (
        row
        | _media(messages, place, columns)
        | {
            "comparison": pair.comparison,
            "origin": pair.origin,
            "feedback_id": pair.feedback_id,
        }
    )


def critique_set(example: Critique) -> str:
    return "critique_media" if _modalities((*example.prompt, example.response)) else "critique"


def critique_row(example: Critique, place: Place) -> Row:
    """The question that the critique model is asked, as one turn of a user, and what a person answered."""
    text = types_pb2.ContentPart
    asked = types_pb2.Message(
        role=types_pb2.ROLE_USER,
        parts=[
            text(text=templates.CRITIQUE_PROMPT),
            *(part for message in example.prompt for part in message.parts),
            text(text=templates.CRITIQUE_RESPONSE),
            *example.response.parts,
            text(text=templates.CRITIQUE_ASK),
        ],
    )
    said = types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, parts=[text(text=example.critique)])
    return _completion((asked,), said, place, media_columns(critique_set(example))) | {
        "feedback_id": example.feedback_id
    }


def label_set(example: Label) -> str:
    return "label_media" if _modalities((*example.prompt, example.response)) else "label"


def label_row(example: Label, place: Place) -> Row:
    row = _completion(example.prompt, example.response, place, media_columns(label_set(example)))
    return row | {"label": example.good, "feedback_id": example.feedback_id}


def _completion(prompt: Sequence[Any], said: Any, place: Place, columns: Sequence[str]) -> Row:
    row = {"prompt": [_turn(one, columns) for one in prompt], "completion": [_turn(said, columns)]}
    return row | _media((*prompt, said), place, columns)


def _modalities(messages: Iterable[types_pb2.Message]) -> set[Modality]:
    return {_NAMES[part.media.modality] for message in messages for part in message.parts if _is_medium(part)}


def _turn(message: types_pb2.Message, columns: Sequence[str]) -> dict[str, Any]:
    role = _ROLES.get(message.role, "user")
    if not columns:
        return {"role": role, "content": "".join(part.text for part in message.parts)}
    return {"role": role, "content": _parts(message)}


def _parts(message: types_pb2.Message) -> list[dict[str, Any]]:
    """Neighbouring texts are one part: to the model they are one text."""
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        if _is_medium(part):
            parts.append({"type": str(_NAMES[part.media.modality])})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += part.text
        elif part.text:
            parts.append({"type": "text", "text": part.text})
    return parts


def _media(messages: Iterable[types_pb2.Message], place: Place, columns: Sequence[str]) -> Row:
    held: Row = {name: [] for name in columns}
    for message in messages:
        for part in message.parts:
            if _is_medium(part):
                held[COLUMNS[_NAMES[part.media.modality]]].append(place(part.media))
    return held


def _is_medium(part: types_pb2.ContentPart) -> bool:
    return part.WhichOneof("part") == "media" and part.media.modality in _NAMES
