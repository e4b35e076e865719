"""What the contracts look like on the wire, as plain data, and the snapshot that old readers rely on.

`python -m tests.protos.wire` (or `make wire`) adds new fields, messages and methods to `wire.json`. It refuses to write
when something in the snapshot changed or went away: number 3 of a message means the same for ever.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

SNAPSHOT = Path(__file__).with_name("wire.json")
PROTOS = Path(__file__).parents[2] / "protos" / "anyloop" / "v1"

_TYPES = {
    number: name.removeprefix("TYPE_").lower() for name, number in vars(FieldDescriptor).items() if name[:5] == "TYPE_"
}

Wire = dict[str, dict[str, dict[str, Any]]]


def current() -> Wire:
    """The wire of the generated code: kind -> full name -> number (or method) -> what stands there."""
    wire: Wire = {"messages": {}, "enums": {}, "services": {}}
    for path in sorted(PROTOS.glob("*.proto")):
        file: FileDescriptor = importlib.import_module(f"protos.anyloop.v1.{path.stem}_pb2").DESCRIPTOR
        for message in file.message_types_by_name.values():
            _add_message(wire, message)
        for enum in file.enum_types_by_name.values():
            _add_enum(wire, enum)
        for service in file.services_by_name.values():
            wire["services"][service.full_name] = {
                method.name: {
                    "input": method.input_type.full_name,
                    "output": method.output_type.full_name,
                    "client_streaming": method.client_streaming,
                    "server_streaming": method.server_streaming,
                }
                for method in service.methods
            }
    return wire


def breaking_changes(old: Wire, new: Wire) -> list[str]:
    """Sentences on everything of `old` that `new` lacks or gives another meaning."""
    broken = []
    for kind, names in old.items():
        for name, entries in names.items():
            if name not in new[kind]:
                broken.append(f"{name} is gone")
                continue
            for key, entry in entries.items():
                now = new[kind][name].get(key)
                if now is None:
                    broken.append(f"{name}: {key} ({_label(entry)}) is gone")
                elif now != entry:
                    broken.append(f"{name}: {key} was {entry}, is {now}")
    return broken


def unguarded(old: Wire, new: Wire) -> list[str]:
    """What `new` has and `old` does not know yet."""
    return [
        f"{name}: {key} ({_label(entry)})"
        for kind, names in new.items()
        for name, entries in names.items()
        for key, entry in entries.items()
        if key not in old.get(kind, {}).get(name, {})
    ]


def _label(entry: Any) -> str:
    return str(entry.get("name", "method")) if isinstance(entry, dict) else str(entry)


def _add_message(wire: Wire, message: Descriptor) -> None:
    fields: dict[str, Any] = {}
    for field in sorted(message.fields, key=lambda field: field.number):
        target = field.message_type or field.enum_type
        fields[str(field.number)] = {
            "name": field.name,
            "type": target.full_name if target else _TYPES[field.type],
            "label": "repeated" if field.is_repeated else "singular",
            # Moving a field into or out of a oneof changes what old readers see.
            "oneof": field.containing_oneof.name if field.containing_oneof else "",
        }
    wire["messages"][message.full_name] = fields
    for nested in message.nested_types:
        _add_message(wire, nested)
    for enum in message.enum_types:
        _add_enum(wire, enum)


def _add_enum(wire: Wire, enum: EnumDescriptor) -> None:
    wire["enums"][enum.full_name] = {str(value.number): value.name for value in enum.values}


def main() -> int:
    old: Wire = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    new = current()
    broken = breaking_changes(old, new)
    if broken:
        print("Not written, these would break readers of old messages:\n  " + "\n  ".join(broken), file=sys.stderr)
        return 1
    added = unguarded(old, new)
    SNAPSHOT.write_text(json.dumps(new, indent=1) + "\n")
    print("\n".join(f"guarded: {line}" for line in added) or "Nothing new.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
