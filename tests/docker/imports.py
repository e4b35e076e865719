"""What a program of this repository can import: read from the sources, functions' own imports included."""

import ast
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
OURS = {path.name for path in REPOSITORY.iterdir() if path.is_dir()}


def reachable(program: str) -> tuple[set[str], set[str]]:
    """Top-level names that `program` (a module, or a package with `__main__`) can import: others', and ours."""
    others: set[str] = set()
    ours: set[str] = set()
    seen: set[str] = set()
    entry = f"{program}.__main__" if _source(f"{program}.__main__") else program
    todo = [entry]
    while todo:
        module = todo.pop()
        source = _source(module)
        if module in seen or source is None:
            continue
        seen.add(module)
        ours.add(module.partition(".")[0])
        parts = module.split(".")
        todo += [".".join(parts[:end]) for end in range(1, len(parts))]
        for name in _imported(ast.parse(source.read_text())):
            top = name.partition(".")[0]
            if top in OURS:
                todo.append(name)
            elif top not in sys.stdlib_module_names:
                others.add(top)
    return others, ours


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _source(module: str) -> Path | None:
    path = REPOSITORY.joinpath(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.exists():
            return candidate
    return None
