"""One version through everything that the plan asks: questions, answers, judgements, scores."""

from collections.abc import Callable, Sequence

import numpy as np

from anyloop.cli.demo.asking import at_once
from anyloop.cli.demo.evaluation import questions
from anyloop.cli.eval.asking import CONCURRENCY, Answered, Question, pose_all, seed_of, world_turn
from anyloop.cli.eval.own import agreement_of_parts, chosen_of
from anyloop.cli.eval.plan import Measured, Plan, Shown
from anyloop.cli.eval.prompt_file import OwnPrompt
from anyloop.cli.rest import GatewayClient
from anyloop.evaluation import generation, understanding
from anyloop.evaluation.critic import Critic, Verdict
from anyloop.evaluation.open_prompts import KINDS, open_prompts
from anyloop.evaluation.scores import CATEGORIES
from anyloop.evaluation.success import Judged, Success, counted, success
from anyloop.modality import Modality
from anyloop.world import SUBTASKS, tasks
from anyloop.world.tasks import Judgement, Task

Advance = Callable[[], None]
SILENCE = Verdict(False, "(there is no answer)", "")


class Measurement:
    """Asks one version what the plan says. `critic` is needed where it judges; `advance` is called for each answer."""

    def __init__(
        self,
        client: GatewayClient,
        plan: Plan,
        own: Sequence[OwnPrompt],
        critic: Critic | None,
        version: str,
        advance: Advance,
    ) -> None:
        self._client, self._plan, self._own, self._critic = client, plan, own, critic
        self._version, self._advance = version, advance

    def run(self) -> Measured:
        """Raises RequestFailed, CriticError."""
        measured, shown = self._on_own_prompts() if self._own else self._on_the_world()
        rated, of_amu = self._understanding() if self._plan.amu else (None, [])
        made, of_amg = self._generation() if self._plan.amg else (None, [])
        shown = [*shown, *of_amu, *of_amg]
        versions = tuple(sorted({one.answered.reply.version for one in shown}))
        return Measured(**measured, versions=versions, shown=tuple(shown), understanding=rated, generation=made)

    def _on_the_world(self) -> tuple[dict, list[Shown]]:
        plan = self._plan
        assert isinstance(plan.prompts, int)
        asked = questions(plan.split, plan.prompts, plan.seed)
        posed = [_world_question(n, task, seed) for n, (task, seed) in enumerate(asked)]
        answers = self._pose(posed)
        judged = [
            Judged(task, tuple(tasks.judge(task, one.answer) for one in given))
            for (task, _), given in zip(asked, answers, strict=True)
        ]
        if self._critic is None:
            shown = [
                Shown(one.task.subtask, answered, judgement.ok, _faults(judgement))
                for one, given in zip(judged, answers, strict=True)
                for answered, judgement in zip(given, one.judgements, strict=True)
            ]
            scores = {q.name: (q.group, one.rating) for q, one in zip(posed, judged, strict=True)}
            return {"success": success(judged), "scores": scores}, shown
        measured, shown, verdicts = self._criticised(posed, answers)
        agreed = [
            (sum(v.right == j.ok for v, j in zip(said, one.judgements, strict=True)), len(said))
            for said, one in zip(verdicts, judged, strict=True)
        ]
        return measured | {"agreement": counted(agreed)}, shown

    def _on_own_prompts(self) -> tuple[dict, list[Shown]]:
        answers = self._pose([one.question for one in self._own])
        measured, shown, _ = self._criticised([one.question for one in self._own], answers)
        assert self._critic is not None
        synergy = agreement_of_parts(self._critic, [one for given in answers for one in given])
        return measured | {"synergy": synergy, "chosen": chosen_of(self._own, answers)}, shown

    def _criticised(
        self, posed: Sequence[Question], answers: Sequence[Sequence[Answered]]
    ) -> tuple[dict, list[Shown], list[list[Verdict]]]:
        """Judged by the critique model: the share of answers that it approves."""
        critic = self._critic
        assert critic is not None

        def judge(one: Answered) -> Verdict:
            return critic.judge(one.question.turns, one.parts) if one.parts else SILENCE

        flat = at_once(judge, [one for given in answers for one in given], CONCURRENCY, lambda _: None)
        said = iter(flat)
        verdicts = [[next(said) for _ in given] for given in answers]
        shown = [
            Shown(
                one.question.group,
                one,
                verdict.right,
                "approved" if verdict.right else "not approved",
                verdict.critique,
            )
            for one, verdict in zip((one for given in answers for one in given), flat, strict=True)
        ]
        groups: dict[str, list[tuple[int, int]]] = {}
        for question, ours in zip(posed, verdicts, strict=True):
            groups.setdefault(question.group, []).append((sum(one.right for one in ours), len(ours)))
        scores = {
            q.name: (q.group, float(np.mean([one.right for one in ours])))
            for q, ours in zip(posed, verdicts, strict=True)
        }
        versions = ", ".join(sorted({one.version for one in flat} - {""}))
        return {"success": Success.of_groups(groups), "scores": scores, "critic": versions}, shown, verdicts

    def _understanding(self) -> tuple[understanding.UnderstandingReport, list[Shown]]:
        plan = self._plan
        asked = understanding.items(plan.amu, plan.seed, plan.split)
        posed = [
            Question(
                f"AMU {item.category} {n}",
                item.category,
                world_turn(item.question, item.media),
                (Modality.TEXT,),
                seed_of(plan.seed, "AMU", n),
            )
            for n, item in enumerate(asked)
        ]
        answers = self._pose(posed)
        ratings = [
            [understanding.rate(item, one.reply.text) for one in given]
            for item, given in zip(asked, answers, strict=True)
        ]
        shown = [
            Shown(f"AMU {one.question.group}", one, rating >= 10, f"rated {rating:.1f} of 10")
            for given, rated in zip(answers, ratings, strict=True)
            for one, rating in zip(given, rated, strict=True)
        ]
        means = [(item, float(np.mean(rated))) for item, rated in zip(asked, ratings, strict=True)]
        return understanding.report(means), shown

    def _generation(self) -> tuple[generation.GenerationReport, list[Shown]]:
        plan = self._plan
        asked = open_prompts(plan.amg, plan.seed, plan.split)
        posed = [
            Question(f"AMG {one.kind} {n}", one.kind, world_turn(one.text, one.media), (), seed_of(plan.seed, "AMG", n))
            for n, one in enumerate(asked)
        ]
        answers = self._pose(posed)
        scored = [
            [generation.score(one, answered.answer) for answered in given]
            for one, given in zip(asked, answers, strict=True)
        ]
        shown = [
            Shown(f"AMG {one.prompt.kind}", answered, _is_full(one), _parts_in_words(one))
            for given, scores in zip(answers, scored, strict=True)
            for answered, one in zip(given, scores, strict=True)
        ]
        return generation.report(scored), shown

    def _pose(self, posed: Sequence[Question]) -> list[list[Answered]]:
        plan = self._plan
        return pose_all(
            self._client,
            posed,
            samples=plan.samples,
            version=self._version,
            temperature=plan.temperature,
            on_answer=lambda _: self._advance(),
        )


def answers_asked(plan: Plan, own: Sequence[OwnPrompt]) -> int:
    """How many answers one version gives."""
    prompts = plan.prompts * len(SUBTASKS) if isinstance(plan.prompts, int) else len(own)
    return plan.samples * (prompts + plan.amu * len(CATEGORIES) + plan.amg * len(KINDS))


def _world_question(number: int, task: Task, seed: int) -> Question:
    name = f"{task.subtask} {number}"
    return Question(name, task.subtask, world_turn(task.prompt, task.media), task.modalities, seed)


def _faults(judgement: Judgement) -> str:
    if judgement.ok:
        return "right"
    parts: dict[Modality, list[str]] = {}
    for fault in judgement.failed:
        parts.setdefault(fault.part, []).append(f"{fault.dimension} {fault.got} (asked: {fault.expected})")
    return "; ".join(f"{part} wrong: {', '.join(faults)}" for part, faults in parts.items())


def _is_full(one: generation.Scored) -> bool:
    return all(value == 10 for value in one.following.values()) and all(value == 1 for value in one.synergy.values())


def _parts_in_words(one: generation.Scored) -> str:
    parts = [f"α {one.selection:.2f}"]
    parts += [f"{slot} {value:.1f} of 10" for slot, value in one.following.items()]
    parts += [f"{' and '.join(pair)} agree in {value:.0%}" for pair, value in one.synergy.items()]
    return "; ".join(parts)
