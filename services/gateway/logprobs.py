"""Log-probabilities in OpenAI's shape: the token as text and as bytes, with its alternatives."""

from collections.abc import Sequence
from typing import Any

from anyloop.sequence import Sequencer
from anyloop.sequence.layout import SPECIALS
from anyloop.sequence.token_bytes import TokenBytes
from protos.anyloop.v1 import types_pb2


class TokenNames:
    """Tokens of one checkpoint family. A delimiter of ours has a name and no bytes: `<|end|>`, `<|image|>`."""

    def __init__(self, sequencer: Sequencer) -> None:
        layout = sequencer.layout
        self._bytes = TokenBytes(sequencer.tokenizer)
        self._text_tokens = layout.text_tokens
        self._names = {layout.special(name): f"<|{name}|>" for name in SPECIALS}
        for modality, span in layout.codes.items():
            self._names |= {span.open: f"<|{modality}|>", span.close: f"<|/{modality}|>"}

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """`bytes` of consecutive tokens add up to the text, also where a character is split over several."""
        data = self._bytes.of(token) if token < self._text_tokens else None
        if data is None:
            return {"token": self._names.get(token, f"<|{token}|>"), "logprob": logprob, "bytes": None}
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def render(
    names: TokenNames,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    alternatives: Sequence[types_pb2.TopLogprobs] = (),
) -> dict[str, Any]:
    """`choices[].logprobs`. `alternatives` are one for each token, or none where none were asked for."""
    content = [names.entry(token, logprob) for token, logprob in zip(token_ids, logprobs, strict=True)]
    for entry in content:
        entry["top_logprobs"] = []
    for entry, top in zip(content, alternatives, strict=False):
        pairs = zip(top.token_ids, top.logprobs, strict=True)
        entry["top_logprobs"] = [names.entry(token, logprob) for token, logprob in pairs]
    return {"content": content, "refusal": None}
