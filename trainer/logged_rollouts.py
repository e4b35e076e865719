"""Answers that users got as rollouts: the log holds what importance ratios need, token by token.

What was not drawn from the distribution whose log-probabilities stand in the log (another temperature, a cut tail, a
bias) is left out, as is what ended without the closing token, or is too old.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyloop.sequence import SequenceLayout
from protos.anyloop.v1 import events_pb2, types_pb2
from trainer.algorithms.rollout import Rollout, Span
from trainer.clients import modalities_of
from trainer.config import TrainerSettings
from trainer.examples import staleness_weight


@dataclass(frozen=True)
class Unset:
    """What the engine takes where a request leaves a parameter unset: the checkpoint's generation_config.json.

    `max_tokens` 0: as many as fit into `capacity` (0: unknown) beside the prompt.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 0
    capacity: int = 0

    @classmethod
    def of(cls, checkpoint: Path, capacity: int) -> "Unset":
        path = checkpoint / "generation_config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        stated = {name: config[name] for name in names if config.get(name) is not None}
        if config.get("do_sample") is False:
            stated["temperature"] = 0.0
        return cls(**stated, max_tokens=config.get("max_new_tokens") or 0, capacity=capacity)

    def limit(self, params: types_pb2.SamplingParams, prompt: int) -> int:
        """The most tokens that an answer to a prompt of so many might have had; 0 if unknown."""
        asked = params.max_tokens or self.max_tokens
        room = max(self.capacity - prompt, 0)
        return min(asked, room) if asked and room else asked or room


def logged_rollouts(
    responses: Iterable[events_pb2.ResponseEvent],
    versions: Sequence[str],
    layout: SequenceLayout,
    settings: TrainerSettings,
    unset: Unset = Unset(),
) -> tuple[list[Rollout], Counter[str]]:
    """(rollouts in the order of their ids, what was left out by reason). A response that comes twice counts once.

    `versions` are the policy versions, oldest first, serving last: the last one's tokens weigh 1.
    """
    behind = {version: len(versions) - 1 - at for at, version in enumerate(versions)}
    found: list[Rollout] = []
    left_out: Counter[str] = Counter()
    for _, response in sorted({response.response_id: response for response in responses}.items()):
        reason = _unfit(response, layout, settings, unset)
        spans = _spans(response, behind, settings)
        if not reason and not spans:
            reason = "logged_answer_without_versions"
        if not reason and not any(span.weight for span in spans):
            reason = "stale_logged_answer"
        if reason:
            left_out[reason] += 1
            continue
        found.append(
            Rollout(
                tuple(response.prompt_token_ids),
                tuple(response.output_token_ids),
                tuple(response.output_logprobs),
                modalities_of(response.modalities),
                unset.limit(response.sampling, len(response.prompt_token_ids)),
                spans,
            )
        )
    return found, left_out


def _unfit(response: events_pb2.ResponseEvent, layout: SequenceLayout, settings: TrainerSettings, unset: Unset) -> str:
    """Why importance ratios to what was logged would mean nothing; "" if they do."""
    tokens, logprobs = response.output_token_ids, response.output_logprobs
    if not response.prompt_token_ids or not tokens or tokens[-1] != layout.end:
        return "unfinished_logged_answer"
    if len(tokens) != len(logprobs) or not all(math.isfinite(one) and one <= 0 for one in logprobs):
        return "logged_answer_without_logprobs"
    if any(not 0 <= token < layout.vocabulary_size for part in (response.prompt_token_ids, tokens) for token in part):
        return "not_a_sequence_of_this_model"
    if len(response.prompt_token_ids) + len(tokens) > settings.max_tokens:
        return "too_long"
    return "" if _plainly_sampled(response.sampling, unset) else "logged_answer_of_another_distribution"


def _plainly_sampled(params: types_pb2.SamplingParams, unset: Unset) -> bool:
    """Whether tokens were drawn as logged: at temperature 1 from all that the grammar allows."""

    def taken(name: str) -> float:
        return float(getattr(params if params.HasField(name) else unset, name))  # type: ignore[arg-type]

    return (
        taken("temperature") == 1
        and taken("top_p") == 1
        and not taken("top_k")
        and not taken("min_p")
        and taken("repetition_penalty") in (0, 1)
        and not params.presence_penalty
        and not params.frequency_penalty
        and not params.logit_bias
    )


def _spans(response: events_pb2.ResponseEvent, behind: dict[str, int], settings: TrainerSettings) -> tuple[Span, ...]:
    """The versions of an answer, or none where they do not cover it; an unknown version is older than all."""
    spans, at = [], 0
    for one in response.version_spans:
        if one.begin != at or one.end <= one.begin:
            return ()
        age = behind.get(one.version, len(behind))
        spans.append(Span(one.version, one.begin, one.end, age, staleness_weight(age, settings)))
        at = one.end
    return tuple(spans) if at == len(response.output_token_ids) else ()
