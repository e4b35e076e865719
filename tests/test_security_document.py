"""docs/security.md names tests, files and settings: all of them exist."""

import ast
import re
from pathlib import Path

import pytest

from anyloop.config import Settings
from anyloop.log.kafka_settings import KafkaSettings
from trainer.config import TrainerSettings
from trainer.gate.config import GateSettings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`\n]+)`", TEXT)
TESTS = sorted({one for one in QUOTED if one.startswith("tests/")})
FILES = sorted({one for one in QUOTED if re.fullmatch(r"(anyloop|services|trainer|k8s|docker|charts)/[\w/.]+", one)})
VARIABLES = sorted(set(re.findall(r"ANYLOOP_[A-Z0-9_]+[A-Z0-9]", TEXT)))
PREFIXES = {"ANYLOOP_KAFKA_": KafkaSettings, "ANYLOOP_TRAINER_": TrainerSettings, "ANYLOOP_GATE_": GateSettings}


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("named", TESTS)
def test_a_named_proof_exists(named: str) -> None:
    file, _, function = named.partition("::")
    assert (ROOT / file).is_file(), file
    assert not function or function in functions(ROOT / file)


@pytest.mark.parametrize("named", FILES)
def test_a_named_file_exists(named: str) -> None:
    assert (ROOT / named).exists()


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_named_setting_exists(variable: str) -> None:
    for prefix, settings in PREFIXES.items():
        if variable == prefix.rstrip("_"):
            return
        if variable.startswith(prefix):
            assert variable.removeprefix(prefix).lower() in settings.model_fields
            return
    assert variable.removeprefix("ANYLOOP_").lower() in Settings.model_fields


def test_every_threat_has_a_proof_and_says_what_remains() -> None:
    threats = TEXT.partition("## Threats")[2].partition("\n## ")[0].split("\n### ")[1:]
    assert len(threats) >= 11
    for threat in threats:
        name = threat.partition("\n")[0]
        assert "tests/" in threat, name
        assert "*Remains*" in threat, name
