"""Success in the reference world: right answers per subtask, right values per dimension, with intervals. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from anyloop.evaluation.intervals import Estimate, bootstrap, clustered_share
from anyloop.world import SUBTASKS
from anyloop.world.tasks import Judgement, Task


@dataclass(frozen=True)
class Judged:
    """One prompt with what the judge found in each of its answers."""

    task: Task
    judgements: tuple[Judgement, ...]

    @property
    def right(self) -> float:
        """Share of answers without a fault."""
        return sum(judgement.ok for judgement in self.judgements) / len(self.judgements)

    @property
    def rating(self) -> float:
        """Share of dimensions as they should be, 0-1, over all answers."""
        failed = sum(len(judgement.failed) for judgement in self.judgements)
        return 1 - failed / sum(judgement.dimensions for judgement in self.judgements)


@dataclass(frozen=True)
class Count:
    """Right out of asked, and the share with its interval."""

    right: int
    asked: int
    share: Estimate


@dataclass(frozen=True)
class Success:
    """`dimensions` are keyed by subtask, then by "part dimension" ("image colour"); `by_dimension` joins all subtasks
    and parts; `mean` weighs every subtask the same and draws prompts again within each."""

    subtasks: Mapping[str, Count]
    dimensions: Mapping[str, Mapping[str, Count]]
    by_dimension: Mapping[str, Count]
    mean: Estimate

    @classmethod
    def of_groups(cls, groups: Mapping[str, Sequence[tuple[int, int]]]) -> "Success":
        """From (right, asked) of every prompt of each group, where nothing is known of dimensions."""
        rates = [[right / asked for right, asked in counts] for counts in groups.values()]
        return cls({name: counted(counts) for name, counts in groups.items()}, {}, {}, bootstrap(rates))


def success(judged: Sequence[Judged]) -> Success:
    """Subtasks that were not asked are left out."""
    groups = {name: [one for one in judged if one.task.subtask == name] for name in SUBTASKS}
    groups = {name: found for name, found in groups.items() if found}
    dimensions = {name: _dimensions(found) for name, found in groups.items()}
    names = dict.fromkeys(key.split()[1] for found in dimensions.values() for key in found)
    joined = {name: [counts for one in judged if (counts := _of_dimension(one, name))[1]] for name in names}
    return Success(
        {name: counted(_whole(one) for one in found) for name, found in groups.items()},
        {name: {key: counted(counts) for key, counts in found.items()} for name, found in dimensions.items()},
        {name: counted(counts) for name, counts in joined.items()},
        bootstrap([[one.right for one in found] for found in groups.values()]),
    )


def _whole(one: Judged) -> tuple[int, int]:
    return sum(judgement.ok for judgement in one.judgements), len(one.judgements)


def _dimensions(judged: Iterable[Judged]) -> dict[str, list[tuple[int, int]]]:
    """(right, asked) of every prompt, by "part dimension"."""
    found: dict[str, list[tuple[int, int]]] = {}
    for one in judged:
        for part in one.task.modalities:
            for dimension in one.task.scene.attributes():
                wrong = sum(
                    any(fault.part is part and fault.dimension == dimension for fault in judgement.failed)
                    for judgement in one.judgements
                )
                asked = len(one.judgements)
                found.setdefault(f"{part} {dimension}", []).append((asked - wrong, asked))
    return found


def _of_dimension(one: Judged, dimension: str) -> tuple[int, int]:
    """(right, asked) of one prompt, over its parts; (0, 0) where its scene has no such dimension."""
    if dimension not in one.task.scene.attributes():
        return 0, 0
    asked = len(one.judgements) * len(one.task.modalities)
    wrong = sum(fault.dimension == dimension for judgement in one.judgements for fault in judgement.failed)
    return asked - wrong, asked


def counted(counts: Iterable[tuple[int, int]]) -> Count:
    """The sum of (right, asked) of prompts."""
    found = list(counts)
    return Count(sum(right for right, _ in found), sum(asked for _, asked in found), clustered_share(found))
