"""Horizontal bars with intervals as inline SVG: one row per name, one bar per version."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from anyloop.evaluation.intervals import Estimate

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 150, 150, 8, 26
_BAR, _GAP, _BETWEEN = 14, 3, 12  # pixels: a bar, between the bars of a row, between rows


def bars(rows: Mapping[str, Sequence[Estimate]], label: str, most: float = 1.0, form: str = ".0%") -> str:
    """`rows[name]` holds an estimate per version, each within 0 and `most`; `label` is read out to those who cannot
    see. A whisker is the interval; a value that was not measured has no bar."""
    bars_per_row = max(map(len, rows.values()))
    row_height = bars_per_row * (_BAR + _GAP) + _BETWEEN
    height = _TOP + row_height * len(rows) + _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.0, max(0.0, value / most))

    marks = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        at = f"{x(tick * most):.1f}"
        marks.append(f'<line x1="{at}" x2="{at}" y1="{_TOP}" y2="{height - _BOTTOM}" class="grid"/>')
        marks.append(f'<text x="{at}" y="{height - 8}" text-anchor="middle">{tick * most:{form}}</text>')
    for n, (name, estimates) in enumerate(rows.items()):
        top = _TOP + n * row_height + _BETWEEN / 2
        middle = top + bars_per_row * (_BAR + _GAP) / 2 + 3
        marks.append(f'<text x="{_LEFT - 10}" y="{middle:.1f}" text-anchor="end" class="name">{escape(name)}</text>')
        marks += [_bar(one, top + m * (_BAR + _GAP), x, m, form) for m, one in enumerate(estimates)]
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'


def _bar(one: Estimate, top: float, x: Callable[[float], float], version: int, form: str) -> str:
    if math.isnan(one.value):
        return ""
    width, middle = x(one.value) - _LEFT, top + _BAR / 2
    parts = [
        f'<rect x="{_LEFT}" y="{top:.1f}" width="{width:.1f}" height="{_BAR}" rx="2" class="bar version{version}"/>'
    ]
    said = f"{one.value:{form}}"
    end = x(one.value)
    if not math.isnan(one.low):
        low, end = x(one.low), x(one.high)
        parts.append(
            f'<path d="M{low:.1f} {middle}H{end:.1f}M{low:.1f} {top + 3}v8M{end:.1f} {top + 3}v8" class="whisker"/>'
        )
        said += f" [{one.low:{form}}, {one.high:{form}}]"
    parts.append(f'<text x="{end + 8:.1f}" y="{middle + 4:.1f}">{said}</text>')
    return "".join(parts)
