"""Turns to token ids and back, for every modality, by one template."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from anyloop.sequence import templates
from anyloop.sequence.layout import LayoutError, SequenceLayout
from anyloop.sequence.segments import Codes, Segment, Turn
from anyloop.sequence.stream import SegmentStream

TOKENIZER_FILE = "tokenizer.json"


class Sequencer:
    """Renders prompts and parses outputs of one checkpoint family.

    A prompt is `bos (role segments end)* assistant`; an answer is `segments end`. Media are `open code*length close`.
    """

    def __init__(self, tokenizer: Tokenizer, layout: SequenceLayout) -> None:
        if tokenizer.get_vocab_size() > layout.text_tokens:
            raise LayoutError(
                f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the layout only {layout.text_tokens}"
            )
        self.tokenizer = tokenizer
        self.layout = layout

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "Sequencer":
        """Reads `tokenizer.json` and `sequence.json`. Raises LayoutError when either is missing or broken."""
        path = Path(directory)
        layout = SequenceLayout.load(path)
        try:
            tokenizer = Tokenizer.from_file(str(path / TOKENIZER_FILE))
        except Exception as error:  # tokenizers raises bare Exception
            raise LayoutError(f"cannot read {path / TOKENIZER_FILE}: {error}") from error
        return cls(tokenizer, layout)

    def save(self, directory: str | Path) -> None:
        self.tokenizer.save(str(Path(directory) / TOKENIZER_FILE))
        self.layout.save(Path(directory))

    def encode_text(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode_text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))

    def encode(self, segments: Iterable[Segment]) -> list[int]:
        """Segments to ids, delimiters included. Raises LayoutError on codes of the wrong number or range."""
        ids: list[int] = []
        for segment in segments:
            if isinstance(segment, str):
                ids.extend(self.encode_text(segment))
                continue
            span = self.layout.codes.get(segment.modality)
            if span is None:
                raise LayoutError(f"this model has no codes for {segment.modality}")
            if len(segment.codes) != span.length or not all(0 <= code < span.size for code in segment.codes):
                raise LayoutError(f"{segment.modality} takes {span.length} codes in [0, {span.size})")
            ids.append(span.open)
            ids.extend(span.begin + code for code in segment.codes)
            ids.append(span.close)
        return ids

    def prompt(self, turns: Iterable[Turn]) -> list[int]:
        """The conversation so far, ready for the assistant's answer."""
        special = self.layout.special
        ids = [special("bos")]
        for turn in turns:
            ids.append(special(turn.role))
            ids.extend(self.encode(turn.segments))
            ids.append(self.layout.end)
        ids.append(special("assistant"))
        return ids

    def answer(self, segments: Iterable[Segment]) -> list[int]:
        """What the assistant is to emit, closing token included."""
        return [*self.encode(segments), self.layout.end]

    def critique_prompt(self, turns: Sequence[Turn], response: Sequence[Segment]) -> list[int]:
        """Asks what is wrong with `response` as an answer to `turns`."""
        asked = [segment for turn in turns for segment in turn.segments]
        segments: list[Segment] = [
            templates.CRITIQUE_PROMPT,
            *asked,
            templates.CRITIQUE_RESPONSE,
            *response,
            templates.CRITIQUE_ASK,
        ]
        return self.prompt([Turn("user", tuple(segments))])

    def refine_prompt(self, turns: Sequence[Turn], response: Sequence[Segment], critique: str) -> list[int]:
        """Asks for a better answer, given the answer and what was said about it."""
        ask = templates.REFINE_BEFORE + critique.strip() + templates.REFINE_AFTER
        return self.prompt([*turns, Turn("assistant", tuple(response)), Turn("user", (ask,))])

    def parse(self, tokens: Iterable[int]) -> list[Segment]:
        """Output ids to segments; stops at `end`. An unfinished code span is dropped."""
        stream = SegmentStream(self)
        segments: list[Segment] = []
        for token in tokens:
            if token == self.layout.end:
                break
            segments.extend(stream.feed([token]))
        segments.extend(stream.finish())
        return _join_text(segments)

    def parse_prompt(self, tokens: Sequence[int]) -> list[Turn]:
        """The turns of a prompt made by `prompt`. Raises LayoutError when it is not one."""
        special, end = self.layout.special, self.layout.end
        roles = {special("system"): "system", special("user"): "user", special("assistant"): "assistant"}
        if len(tokens) < 2 or tokens[0] != special("bos") or tokens[-1] != special("assistant"):
            raise LayoutError("a prompt begins with bos and ends with assistant")
        turns: list[Turn] = []
        body = list(tokens[1:-1])
        while body:
            if body[0] not in roles or end not in body:
                raise LayoutError("a turn begins with its role and ends with end")
            close = body.index(end)
            turns.append(Turn(roles[body[0]], tuple(self.parse(body[1:close]))))  # type: ignore[arg-type]
            body = body[close + 1 :]
        return turns


def _join_text(segments: list[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and joined and isinstance(joined[-1], str):
            joined[-1] += segment
        elif segment:
            joined.append(segment)
    return joined


__all__ = ["Codes", "Sequencer"]
