"""The versions of a replay in the main registry: `LINEAGE-000001` and on, with all that they come from.

Safe to repeat: a version stands there once, known by the key of the round that made it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyloop.registry import CheckpointError, Manifest, Registry
from anyloop.registry.copies import copy_version
from trainer.publish import published_by_round


class Results:
    """From `private`, the replay's own home folder, into `registry`; evaluations go to the folder of the main gate."""

    def __init__(self, plan: Mapping[str, Any], private: Path, registry: Registry, gate: Path) -> None:
        self._plan, self._private, self._main, self._gate = plan, private, registry, gate
        self._own = Registry(private / "registry")

    def publish(self, settings: Mapping[str, Any]) -> list[str]:
        """Brings over every version that is not there yet, and the gate's word on those that it has decided.

        Returns the versions added. `settings`: all of the trainer's, for the record.
        """
        added = []
        for version in self._own.versions("policy"):
            ours = self._own.manifest(version)
            key = str(ours.metrics.get("round_key", ""))
            if not key:
                continue  # what the replay began from
            theirs = published_by_round(self._main, self._plan["lineage"], key)
            if theirs is None:
                theirs = self._add(ours, settings)
                added.append(theirs.version)
            if theirs.gate is None and ours.gate is not None:
                self._main.record_gate(theirs.version, self._renamed(ours.gate))
                self._copy_evaluation(version, theirs.version)
        return added

    def _add(self, ours: Manifest, settings: Mapping[str, Any]) -> Manifest:
        plan = self._plan
        source = {name: plan[name] for name in ("algorithm", "rounds", "base", "critique", "begin", "end", "asked")}
        metrics = ours.metrics | {"settings": dict(settings), "replay": source | {"private_version": ours.version}}
        return copy_version(
            self._own,
            ours.version,
            self._main,
            lineage=plan["lineage"],
            parent=self._name(ours.parent),
            offsets={f"replay/{topic}": parts for topic, parts in plan["end"].items()},
            metrics=metrics,
        )

    def _name(self, private_version: str) -> str:
        """What a version of the replay's own registry is called in the main one."""
        try:
            key = self._own.manifest(private_version).metrics.get("round_key")
        except CheckpointError:
            key = None
        found = published_by_round(self._main, self._plan["lineage"], key) if key else None
        return found.version if found else private_version

    def _renamed(self, gate: Mapping[str, Any]) -> dict[str, Any]:
        names = {name: self._name(gate[name]) for name in ("serving", "candidate") if gate.get(name)}
        return dict(gate) | names

    def _copy_evaluation(self, version: str, name: str) -> None:
        """The answers of a version to every prompt, so that it can be compared with others without asking again."""
        try:
            found = json.loads((self._private / "gate" / f"{version}.json").read_text())
        except (OSError, ValueError):
            return  # rejected without an evaluation
        found["evaluation"]["version"] = name
        self._gate.mkdir(parents=True, exist_ok=True)
        temporary = self._gate / f"{name}.tmp"
        temporary.write_text(json.dumps(found))
        os.replace(temporary, self._gate / f"{name}.json")
