"""Hypothesis strategies for values that the chart's schema allows: overrides of single values, many at once."""

import json
from typing import Any

from hypothesis import strategies as st

from tests.charts.rendering import CHART

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
# Free-form parts of Kubernetes' own types: nothing but empty ones are made, real ones stand in the examples.
_NAMES = st.from_regex(r"\A[a-z]([a-z0-9-]{0,20}[a-z0-9])?\Z")


def overrides() -> st.SearchStrategy[dict[str, Any]]:
    """Values as somebody writes them: some keys of some sections."""
    return _object(SCHEMA, least=1)


def _object(schema: dict[str, Any], least: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    properties = {name: _value(part) for name, part in schema["properties"].items() if name not in _SPECIAL}
    required = {name: properties[name] for name in schema.get("required", [])}
    optional = {name: value for name, value in properties.items() if name not in required}
    return st.sets(st.sampled_from(sorted(optional)), min_size=min(least, len(optional)), max_size=6).flatmap(
        lambda chosen: st.fixed_dictionaries({**required, **{name: optional[name] for name in sorted(chosen)}})
    )


def _value(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return _value(SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[-1]])
    for several in ("allOf", "anyOf"):
        if several in schema:
            return st.one_of([_value(part) for part in schema[several]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object" if "properties" in schema and schema.get("additionalProperties") is False:
            return _object(schema)
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return _mapping(schema)
        case "object":
            return st.just({})
        case "array":
            return _array(schema)
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "number":
            return st.floats(0.5, schema.get("maximum", 1000.0))
        case "null":
            return st.none()
        case "string":
            return _string(schema)
    raise NotImplementedError(f"no strategy for {schema}")


def _mapping(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    pattern = schema.get("propertyNames", {}).get("pattern", "")
    keys = st.from_regex(r"\AANYLOOP_[A-Z]{1,12}\Z") if "ANYLOOP" in pattern else _NAMES
    return st.dictionaries(keys, _value(schema["additionalProperties"]), max_size=2)


def _array(schema: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
    items = schema.get("items", {})
    if items == {"type": "object"} or "properties" in items:
        return st.just([])
    unique = schema.get("uniqueItems", False)
    return st.lists(_value(items), min_size=schema.get("minItems", 0), max_size=3, unique=unique)


def _string(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" not in schema:
        return _NAMES
    # JSON Schema's `$` is the very end; Python's lets a line break follow.
    made = st.from_regex(schema["pattern"].replace("^", r"\A").replace("$", r"\Z"), alphabet=_ASCII)
    return made.filter(lambda text: text not in ("latest",) and len(text) >= schema.get("minLength", 0))


_ASCII = st.characters(codec="ascii", min_codepoint=33)
# The spec of a PolicyRollout has a schema of its own; `global` is Helm's.
_SPECIAL = {"spec", "global"}
