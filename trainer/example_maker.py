"""A round's feedback as examples: media encoded, statements checked where the robust mode asks for it."""

import logging
from collections.abc import Callable, Container, Sequence
from types import MappingProxyType

from anyloop.sequence import LayoutError, Segment, Sequencer
from protos.anyloop.v1 import types_pb2
from trainer.clients import gather
from trainer.examples import Examples, form_examples
from trainer.join import Joined
from trainer.join_store import Round
from trainer.robust import judge_statements, metrics_of, trust_of
from trainer.round_context import Report, RoundContext
from trainer.statements import Trust

log = logging.getLogger(__name__)


class ExampleMaker:
    """Reads `joined`. Raises ServiceError where the codecs stay away."""

    def __init__(self, context: RoundContext, sequencer: Sequencer, joined: Sequence[Joined]) -> None:
        self._context, self._sequencer, self._joined = context, sequencer, joined
        self._encode = self._encoder(joined)
        self._versions = context.announcements.promotions("policy") or [context.serving("policy")]

    def examples(self, told: Container[str] = (), trust: Trust = MappingProxyType({})) -> Examples:
        """See `form_examples`."""
        return form_examples(
            self._joined, self._sequencer, self._context.trainer, self._encode, self._versions, told, trust
        )

    def remembered_trust(self) -> Trust:
        """How far statements of earlier rounds were believed then."""
        return self._context.store.trust.of(one.feedback.feedback_id for one in self._joined)

    def trust(self, claimed: Round, examples: Examples, critic: str, report: Report) -> Trust:
        """How far a round's statements are believed, by the critique model `critic`, which has learned none of them.

        It is kept, so that a resumed round believes the same.
        """
        trainer, store = self._context.trainer, self._context.store.trust
        known = store.of_round(claimed.id)
        if known or not trainer.robust_share:
            return known if trainer.robust_share else {}
        statements = [
            one for one in examples.statements if all(len(sequence) <= trainer.max_tokens for sequence in one.sequences)
        ]
        with self._context.journal.phase(claimed.id, "robust", report.seconds):
            found = self._context.world.call(
                judge_statements,
                self._context.registry.path(critic),
                statements,
                trainer.robust,
                trainer.critique,
                trainer.optim,
            )
        if found is None:
            log.warning("round %d: too few statements to tell who is reliable; all are believed", claimed.id)
            return {}
        report.metrics |= metrics_of(statements, found)
        trust = trust_of(statements, found)
        store.keep(claimed.id, trust)
        return trust

    def _encoder(self, joined: Sequence[Joined]) -> Callable[[types_pb2.ContentPart], Segment]:
        """Codes of every medium in refinements, by the part that holds it."""
        parts = {
            part.SerializeToString(deterministic=True): part
            for one in joined
            for part in one.feedback.feedback.refinement
            if part.WhichOneof("part") in ("media", "inline_media")
        }
        found = (
            self._context.with_services(lambda services: gather(services.encode, parts.values(), "a medium"))
            if parts
            else []
        )
        codes = dict(zip(parts, found, strict=True))

        def encode(part: types_pb2.ContentPart) -> Segment:
            if part.WhichOneof("part") == "text":
                return str(part.text)
            segment = codes.get(part.SerializeToString(deterministic=True))
            if segment is None:
                raise LayoutError("this part of a refinement could not be encoded")
            return segment

        return encode
