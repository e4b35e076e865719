"""What rules and dashboards ask for: their queries, and the metrics and labels in them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "charts/anyloop/rules").glob("*.yaml"))
DASHBOARDS = sorted((ROOT / "charts/anyloop/dashboards").glob("*.json"))

_METRIC = re.compile(r"\b((?:anyloop|nv|process|kube|up|ALERTS)[\w:]*)(?:\{([^}]*)\})?")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BY = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Query:
    where: str
    text: str

    @property
    def metrics(self) -> set[str]:
        """By name, those in a matcher on `__name__` included."""
        named = set()
        for pattern in re.findall(r'__name__=~"([^"]*)"', self.text):
            named |= set(pattern.split("|"))
        return named | {name for name, _ in _METRIC.findall(_STRING.sub('""', self.text))}

    @property
    def labels(self) -> set[str]:
        """Those that are matched and those that are grouped by."""
        found = {name.strip() for names in _BY.findall(self.text) for name in names.split(",") if name.strip()}
        for selector in re.findall(r"\{([^}]*)\}", _STRING.sub('""', self.text)):
            found |= set(re.findall(r"(\w+)\s*[=!]", selector))
        return found - {"__name__"}


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def rule_queries() -> list[Query]:
    return [Query(str(rule.get("alert") or rule["record"]), str(rule["expr"])) for rule in rules()]


def panel_queries() -> list[Query]:
    """Of every panel, annotation and variable, with Grafana's variables filled in."""
    found = []
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            where = f"{path.stem}: {panel['title']}"
            found += [Query(where, target["expr"]) for target in panel.get("targets", ())]
        found += [Query(f"{path.stem}: {one['name']}", one["expr"]) for one in board["annotations"]["list"]]
    filled = [("$namespace", ".*"), ("$__rate_interval", "5m")]
    for old, new in filled:
        found = [Query(query.where, query.text.replace(old, new)) for query in found]
    return found
