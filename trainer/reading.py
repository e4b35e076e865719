"""What the reward model reads of answers: themselves, or with what the serving critique model says of them."""

from collections.abc import Sequence

from anyloop.sequence import Sequencer
from trainer.algorithms.reward_model import View, with_critique
from trainer.batches import TokenSequence
from trainer.clients import Services
from trainer.config import TrainerSettings
from trainer.examples import Pair
from trainer.round_context import RoundContext
from trainer.self_improving import SelfImprover


class RewardReading:
    """A `Reading` over the services. An answer that gets no critique is read with an empty one."""

    def __init__(self, context: RoundContext, sequencer: Sequencer, view: View) -> None:
        self._context, self._sequencer, self._view = context, sequencer, view

    def __call__(self, answers: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Raises ServiceError while the critique service is away."""
        if self._view == "answer" or not answers:
            return list(answers)
        said = self._context.with_services(lambda services: self._said(services, answers))
        return [with_critique(self._sequencer, one, words) for one, words in zip(answers, said, strict=True)]

    def pairs(self, pairs: Sequence[Pair]) -> list[tuple[TokenSequence, TokenSequence]]:
        """Of the chosen and the rejected answer of each pair."""
        read = self([sequence for pair in pairs for sequence in pair.sequences])
        return list(zip(read[0::2], read[1::2], strict=True))

    async def _said(self, services: Services, answers: Sequence[TokenSequence]) -> list[str]:
        settings: TrainerSettings = self._context.trainer
        improver = SelfImprover(services, self._sequencer, settings, version="", seed=settings.seed)
        return await improver.ask([(one.prompt, one.answer) for one in answers])
