"""Which kind of work an example is, as far as its tokens tell: the media of the prompt and of the answer.

The trainer knows no tasks. But "text+image>text" and "text>video" are different abilities, and learning one may cost
another; so weights are balanced and losses watched per signature.
"""

from collections.abc import Sequence

from anyloop.modality import Modality
from anyloop.sequence import SequenceLayout
from trainer.examples import Pair


def signature(layout: SequenceLayout, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """`modalities of the prompt>modalities of the answer`, such as `text+image>audio`."""
    return f"{_media(layout, prompt)}>{_media(layout, answer)}"


def balanced(pairs: Sequence[Pair], signatures: Sequence[str], strength: float, most: float = 4.0) -> list[float]:
    """New weights of `pairs` that even out the total weight of each signature, the sum unchanged.

    A signature that has 1/k of the mean weight is raised by k**strength: 0 leaves all as it is, 1 makes all equal. None
    is raised or lowered by more than `most`: a handful of pairs must not speak for a modality.
    """
    totals: dict[str, float] = {}
    for pair, name in zip(pairs, signatures, strict=True):
        totals[name] = totals.get(name, 0.0) + pair.weight
    present = [total for total in totals.values() if total > 0]
    if not strength or len(present) < 2:
        return [pair.weight for pair in pairs]
    mean = sum(present) / len(present)
    factor = {
        name: min(max((mean / total) ** strength, 1 / most), most) if total > 0 else 1.0
        for name, total in totals.items()
    }
    raised = [pair.weight * factor[name] for pair, name in zip(pairs, signatures, strict=True)]
    scale = sum(present) / sum(raised)
    return [weight * scale for weight in raised]


def _media(layout: SequenceLayout, tokens: Sequence[int]) -> str:
    there = {layout.modality_of(token) for token in tokens}
    return "+".join(str(modality) for modality in Modality if modality in there) or "nothing"
