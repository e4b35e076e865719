"""The learning curve as inline SVG: success over versions, one line per subtask, the mean on top."""

from collections.abc import Sequence
from html import escape

from anyloop.cli.demo.evaluation import Evaluation
from anyloop.world import SUBTASKS

_WIDTH, _HEIGHT = 960, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 96, 14, 34
_HUES = (210, 160, 30, 280, 340, 100, 190, 15)


def learning_curve(evaluations: Sequence[Evaluation]) -> str:
    """A band of two standard errors stands around the mean."""
    columns = len(evaluations)

    def x(n: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (n / (columns - 1) if columns > 1 else 0.5)

    def y(rate: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - min(1.0, max(0.0, rate)))

    def line(rates: Sequence[float], attributes: str) -> str:
        points = " ".join(f"{x(n):.1f},{y(rate):.1f}" for n, rate in enumerate(rates))
        return f'<polyline points="{points}" fill="none" stroke-linejoin="round" {attributes}/>'

    marks = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" class="grid"/>'
        f'<text x="{_LEFT - 8}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:.0%}</text>'
        for rate in (0, 0.25, 0.5, 0.75, 1)
    ]
    names = [
        f'<text x="{x(n):.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(" ".join(evaluation.versions))}</text>'
        for n, evaluation in enumerate(evaluations)
    ]
    lines = []
    ends: list[tuple[float, str, str]] = []
    for subtask, hue in zip(SUBTASKS, _HUES, strict=True):
        rates = [evaluation.scores[subtask].rate for evaluation in evaluations]
        colour = f"hsl({hue} 55% 52%)"
        lines.append(line(rates, f'stroke="{colour}" stroke-width="1.5" opacity=".75"'))
        ends.append((y(rates[-1]), subtask, f'style="fill:{colour}"'))
    means = [evaluation.mean for evaluation in evaluations]
    band = [(n, e.mean + 2 * e.standard_error) for n, e in enumerate(evaluations)]
    band += [(n, e.mean - 2 * e.standard_error) for n, e in reversed(list(enumerate(evaluations)))]
    area = " ".join(f"{x(n):.1f},{y(rate):.1f}" for n, rate in band)
    ends.append((y(means[-1]), "mean", 'class="mean"'))
    dots = [f'<circle cx="{x(n):.1f}" cy="{y(mean):.1f}" r="4" class="mean"/>' for n, mean in enumerate(means)]
    labels = [
        f'<text x="{x(columns - 1) + 12:.1f}" y="{at + 4:.1f}" {attributes}>{name}</text>'
        for at, name, attributes in _apart(ends)
    ]
    body = "".join(
        [
            *marks,
            *lines,
            f'<polygon points="{area}" class="band"/>',
            line(means, 'class="meanline"'),
            *dots,
            *names,
            *labels,
        ]
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Success on held-out prompts by version">'
        f"{body}</svg>"
    )


def _apart(ends: list[tuple[float, str, str]], least: float = 14.0) -> list[tuple[float, str, str]]:
    """The labels moved so that none covers another."""
    placed: list[tuple[float, str, str]] = []
    for at, name, attributes in sorted(ends):
        placed.append((max(at, placed[-1][0] + least) if placed else at, name, attributes))
    over = max(0.0, placed[-1][0] - (_HEIGHT - _BOTTOM))
    return [(at - over, name, attributes) for at, name, attributes in placed]
