"""Alert rules and dashboards as they stand: valid, readable, with a runbook, and one with the code that makes them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.promtool import promtool
from tests.observability.references import DASHBOARDS, ROOT, RULES, alerts, panel_queries, rules

ALERTS = alerts()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


def test_there_are_four_rule_files_and_three_dashboards() -> None:
    assert [path.stem for path in RULES] == ["learning", "rollout", "serving", "slo"]
    assert [path.stem for path in DASHBOARDS] == ["learning", "rollout", "serving"]


def test_prometheus_takes_every_rule() -> None:
    promtool("check", "rules", *map(str, RULES))


def test_prometheus_understands_every_query_of_the_dashboards(tmp_path: Path) -> None:
    queries = panel_queries()
    assert len(queries) > 60
    made = [{"record": f"panel:query:{index}", "expr": query.text} for index, query in enumerate(queries)]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    promtool("check", "rules", str(path))


def test_no_two_rules_have_one_name() -> None:
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_it_means_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert len(alert["annotations"]["summary"]) <= 130
    assert alert["annotations"]["description"].endswith(".")
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert file == "docs/operations.md"
    assert anchor == alert["alert"].lower()
    section = re.search(rf"^### {alert['alert']}\n(.*?)(?=^#|\Z)", OPERATIONS, re.M | re.S)
    assert section, f"docs/operations.md has no section '### {alert['alert']}'"
    assert "**Look**" in section[1]
    assert "**Do**" in section[1]


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (AnyLoop\w+)$", OPERATIONS, re.M)) == {alert["alert"] for alert in ALERTS}


def test_the_dashboards_are_what_the_code_makes() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "anyloop.telemetry.dashboards", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert made.returncode == 0, f"{made.stdout}: run python -m anyloop.telemetry.dashboards"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_say_what_they_show_and_none_lies_over_another(path: Path) -> None:
    board = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith((".", "?")), panel["title"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
