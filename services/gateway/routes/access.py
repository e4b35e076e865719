"""What every route needs from its request: the data plane, the caller, the links, and the schema of its body."""

import json
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request

from services.gateway.dataplane import DataPlane
from services.gateway.keys import Caller
from services.gateway.links import MediaLinks


def plane_of(request: Request) -> DataPlane:
    plane: DataPlane = request.app.state.plane
    return plane


def caller_of(request: Request) -> Caller:
    """Raises GatewayError (401)."""
    return plane_of(request).keys.authenticate(request.headers.get("authorization"))


def links_of(request: Request) -> MediaLinks:
    return MediaLinks(str(request.base_url), plane_of(request).settings.public_url)


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that the route reads itself (limits come before parsing)."""
    schema = model.model_json_schema(ref_template="#/$defs/{model}")
    inlined = _inline(schema, schema.get("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined}}}}


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """Replaces references by what they name: `$defs` has no place inside an OpenAPI operation."""
    if isinstance(node, dict):
        if "$ref" in node:
            return _inline(definitions[node["$ref"].rpartition("/")[2]], definitions)
        return {
            key: _inline(value, definitions) for key, value in node.items() if key not in ("$defs", "discriminator")
        }
    if isinstance(node, list):
        return [_inline(value, definitions) for value in node]
    return json.loads(json.dumps(node))
