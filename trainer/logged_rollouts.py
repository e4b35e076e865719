"""Answers that users got as rollouts: the log holds what importance ratios need, token by token.

What was not drawn from the distribution whose log-probabilities stand in the log (another temperature, a cut tail, a
bias) is left out, as is what ended without the closing token, or is too old.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from anyloop.sequence import SequenceLayout
from protos.anyloop.v1 import events_pb2, types_pb2
from trainer.algorithms.rollout import Rollout, Span
from trainer.clients import modalities_of
from trainer.config import TrainerSettings
from trainer.examples import staleness_weight


def logged_rollouts(
    responses: Iterable[events_pb2.ResponseEvent],
    versions: Sequence[str],
    layout: SequenceLayout,
    settings: TrainerSettings,
) -> tuple[list[Rollout], Counter[str]]:
    """(rollouts in the order of their ids, what was left out by reason). A response that comes twice counts once.

    `versions` are the policy versions, oldest first, serving last: the last one's tokens weigh 1.
    """
    behind = {version: len(versions) - 1 - at for at, version in enumerate(versions)}
    found: list[Rollout] = []
    left_out: Counter[str] = Counter()
    for _, response in sorted({response.response_id: response for response in responses}.items()):
        reason = _unfit(response, layout, settings)
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
                response.sampling.max_tokens,
                spans,
            )
        )
    return found, left_out


def _unfit(response: events_pb2.ResponseEvent, layout: SequenceLayout, settings: TrainerSettings) -> str:
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
    return "" if _plainly_sampled(response.sampling) else "logged_answer_of_another_distribution"


def _plainly_sampled(params: types_pb2.SamplingParams) -> bool:
    """Whether tokens were drawn as logged: at temperature 1 from all that the grammar allows."""
    return (
        (params.temperature == 1 or not params.HasField("temperature"))
        and (params.top_p == 1 or not params.HasField("top_p"))
        and not params.top_k
        and not params.min_p
        and params.repetition_penalty in (0, 1)
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
