"""The learner sees only what came through the log: never the world that asks, renders and judges."""

import ast
import subprocess
import sys
from pathlib import Path

import trainer

ROOT = Path(trainer.__file__).parents[1]

BLOCKED = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "anyloop.world" or name.startswith("anyloop.world."):
            raise AssertionError(f"imported {name}")
        return None

sys.meta_path.insert(0, Block())
import trainer
for module in pkgutil.walk_packages(trainer.__path__, "trainer."):
    importlib.import_module(module.name)
assert not [name for name in sys.modules if name.startswith("anyloop.world")]
print("clean")
"""


def imported_by(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def test_nothing_the_trainer_imports_leads_to_the_world() -> None:
    waiting = list((ROOT / "trainer").rglob("*.py"))
    seen: set[Path] = set()
    reached: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        names = imported_by(path)
        reached |= names
        waiting += [found for name in names if (found := file_of(name)) is not None]
    assert len(seen) > 40
    assert not [name for name in reached if name.startswith("anyloop.world")]
    assert not [name for name in reached if name.startswith("services")]


def test_every_trainer_module_loads_where_the_world_cannot() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.stdout.strip() == "clean", done.stderr
