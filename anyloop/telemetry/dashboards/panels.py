"""The few kinds of panels that our dashboards are made of, and a grid that fills itself from left to right.

Every query goes to the data source that the viewer has chosen, and `NS` keeps it to the chosen namespaces. Where the
scrape configuration gives no namespace (compose, one machine), "All" matches that too.
"""

from collections.abc import Sequence
from typing import Any

Panel = dict[str, Any]
Query = tuple[str, str]  # PromQL, legend

NS = 'namespace=~"$namespace"'
SERVING = f'{NS}, component!="policy-lab"'  # the pool that trainer and gate ask is no part of what clients see
# Replicas that answer, by what they answer with: one whose engine is gone has a version, too.
IN_SERVICE = (
    f'count by (version) (anyloop_policy_version_info{{{SERVING}, model_name="policy"}} == 1 '
    f'and on (namespace, pod, instance) anyloop_serving{{{SERVING}, model_name="policy"}} == 1)'
)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
# What a viewer reads off the colour: fine, look at it, act.
GREEN, YELLOW, RED = "green", "yellow", "red"


def graph(
    title: str,
    about: str,
    queries: Sequence[Query],
    *,
    unit: str = "short",
    width: int = 8,
    stack: bool = False,
    limit: float | None = None,
    lines: str = "linear",
) -> Panel:
    """Lines over time. `limit` draws the line that an alert or an objective draws."""
    custom: dict[str, Any] = {
        "drawStyle": "line",
        "lineInterpolation": lines,
        "lineWidth": 1,
        "fillOpacity": 30 if stack else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
    }
    defaults: dict[str, Any] = {"unit": unit, "min": 0, "custom": custom}
    if limit is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = _thresholds([(limit, RED)])
    return {
        **_panel("timeseries", title, about, queries, width, 8),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def number(
    title: str,
    about: str,
    query: str,
    *,
    unit: str = "short",
    width: int = 4,
    steps: Sequence[tuple[float, str]] = (),
    base: str = GREEN,
    decimals: int | None = None,
    empty: str = "none yet",
) -> Panel:
    """One figure, coloured from `base` on by `steps`: from this value on, this colour."""
    defaults: dict[str, Any] = {"unit": unit, "thresholds": _thresholds(steps, base), "noValue": empty}
    if decimals is not None:
        defaults["decimals"] = decimals
    return {
        **_panel("stat", title, about, [(query, "")], width, 4),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "value",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def names(title: str, about: str, query: str, legend: str, *, width: int = 8, empty: str = "none") -> Panel:
    """The series that exist now, by name, with their values: which versions, on how many replicas."""
    panel = number(title, about, query, width=width, empty=empty)
    panel["targets"] = [_target(query, legend, 0, instant=True)]
    panel["options"] |= {"textMode": "value_and_name", "graphMode": "none", "colorMode": "none"}
    return panel


def heat(title: str, about: str, query: str, *, unit: str = "s", width: int = 8) -> Panel:
    """How a histogram spreads, over time."""
    panel = _panel("heatmap", title, about, [(query, "{{le}}")], width, 8)
    panel["targets"][0]["format"] = "heatmap"
    panel["options"] = {
        "calculate": False,
        "yAxis": {"unit": unit},
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
        "cellGap": 1,
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False},
    }
    return panel


def quantile(q: float, metric: str, where: str, by: str = "") -> str:
    """PromQL of a quantile over the last five minutes of the histogram `metric`."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[5m])))"


def row(title: str) -> Panel:
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def dashboard(uid: str, title: str, about: str, panels: Sequence[Panel], *, refresh: str = "30s") -> dict[str, Any]:
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["anyloop"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": refresh,
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "tags": ["anyloop"], "title": "AnyLoop", "asDropdown": False}],
        "annotations": {"list": [_promotions()]},
        "templating": {"list": [_source(), _namespace()]},
        "panels": _placed(panels),
    }


def _panel(kind: str, title: str, about: str, queries: Sequence[Query], width: int, height: int) -> Panel:
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "targets": [_target(query, legend, index) for index, (query, legend) in enumerate(queries)],
        "gridPos": {"w": width, "h": height},
    }


def _target(query: str, legend: str, index: int, *, instant: bool = False) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": query,
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
    }


def _thresholds(steps: Sequence[tuple[float, str]], base: str = GREEN) -> dict[str, Any]:
    below = {"color": base, "value": None}
    return {"mode": "absolute", "steps": [below, *({"color": color, "value": value} for value, color in steps)]}


def _placed(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with their places and numbers; one that does not fit beside the others begins a new line."""
    placed: list[Panel] = []
    x = y = height = 0
    for number_, panel in enumerate(panels, start=1):
        wide, high = (_COLUMNS, 1) if panel["type"] == "row" else (panel["gridPos"]["w"], panel["gridPos"]["h"])
        if x + wide > _COLUMNS or panel["type"] == "row":
            x, y, height = 0, y + height, 0
        placed.append({**panel, "id": number_, "gridPos": {"x": x, "y": y, "w": wide, "h": high}})
        x, height = x + wide, max(height, high)
    return placed


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}


def _namespace() -> dict[str, Any]:
    return {
        "name": "namespace",
        "label": "Namespace",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(anyloop_build_info, namespace)", "refId": "namespace"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _promotions() -> dict[str, Any]:
    """A mark on every graph where weights were exchanged."""
    return {
        "name": "Weight swaps",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "purple",
        "expr": f'sum(increase(anyloop_swap_stall_seconds_count{{{SERVING}, model_name="policy"}}[1m])) > 0',
        "step": "60s",
        "titleFormat": "weights exchanged",
    }
