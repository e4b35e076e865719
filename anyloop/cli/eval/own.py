"""What answers to one's own prompts are judged by beside the critic's verdict: which parts, and whether they agree."""

from collections import Counter
from collections.abc import Mapping, Sequence

from anyloop.cli.demo.asking import at_once
from anyloop.cli.eval.asking import CONCURRENCY, Answered
from anyloop.cli.eval.plan import Chosen
from anyloop.cli.eval.prompt_file import OwnPrompt
from anyloop.evaluation.critic import Critic, Part
from anyloop.evaluation.generation import Pair
from anyloop.evaluation.intervals import bootstrap
from anyloop.evaluation.open_prompts import SLOT_OF
from anyloop.evaluation.scores import PAIRS, Slot
from anyloop.evaluation.success import Count, counted
from anyloop.modality import Modality


def modalities_of(answered: Answered) -> frozenset[Modality]:
    words = {Modality.TEXT} if answered.reply.text.strip() else set()
    return frozenset(words | {file.modality for file in answered.files})


def chosen_of(own: Sequence[OwnPrompt], answers: Sequence[Sequence[Answered]]) -> Chosen | None:
    """Modality selection over the prompts that bring votes and leave the choice to the model; None without such."""
    shares: list[float] = []
    choices: Counter[str] = Counter()
    for prompt, given in zip(own, answers, strict=True):
        if prompt.votes is None or prompt.question.modalities:
            continue
        sets = [modalities_of(one) for one in given]
        shares.append(sum(prompt.votes.get(chosen, 0.0) for chosen in sets) / len(sets))
        choices.update("+".join(one for one in Modality if one in chosen) or "nothing" for chosen in sets)
    return Chosen(bootstrap([shares]), dict(choices.most_common())) if shares else None


def agreement_of_parts(critic: Critic, answers: Sequence[Answered]) -> Mapping[Pair, Count]:
    """Of the answers that have both parts of a pair, how many agree by the critique model. Pairs that no answer has are
    left out."""
    both = [
        (pair, slots[pair[0]], slots[pair[1]])
        for slots in map(_slots, answers)
        for pair in PAIRS
        if slots.keys() >= set(pair)
    ]
    agreed = at_once(lambda one: critic.agree(one[1], one[2]), both, CONCURRENCY, lambda _: None)
    counts: dict[Pair, list[tuple[int, int]]] = {}
    for (pair, _, _), right in zip(both, agreed, strict=True):
        counts.setdefault(pair, []).append((int(right), 1))
    return {pair: counted(found) for pair, found in counts.items()}


def _slots(answered: Answered) -> Mapping[Slot, tuple[Part, ...]]:
    """The parts of an answer by slot."""
    slots: dict[Slot, tuple[Part, ...]] = {"text": (answered.reply.text,)} if answered.reply.text.strip() else {}
    for file in answered.files:
        slot = SLOT_OF[file.modality]
        slots[slot] = (*slots.get(slot, ()), file)
    return slots
