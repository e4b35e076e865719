"""Every alert fires where it should, with the words that people then read, and is quiet where it must be."""

from pathlib import Path

import pytest
import yaml

from tests.observability.promtool import promtool
from tests.observability.references import RULES, alerts

CASES = Path(__file__).parent / "rules"


@pytest.mark.parametrize("name", [path.stem for path in RULES])
def test_alerts_fire_and_are_quiet_as_the_cases_say(name: str) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(CASES / f"{name}.yaml"))


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    fires, quiet = set(), set()
    for path in CASES.glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case["alert_rule_test"]:
                (fires if check["exp_alerts"] else quiet).add(check["alertname"])
    everything = {alert["alert"] for alert in alerts()}
    assert fires == everything
    assert quiet == everything
