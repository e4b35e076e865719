"""The API port in memory: resourceVersions, conflicts, status isolation, merge patches, watches that can be broken.

Stands in for a server where a test is about the controller's side of a call; tests/k8s/controlplane has a real one.
"""

import asyncio
import copy
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from k8s.api import ApiError, Json, Resource


def merged(document: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return patch
    found = dict(document) if isinstance(document, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


def selected(found: Json, selector: str) -> bool:
    labels = found["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, _, value in (one.partition("=") for one in selector.split(",") if one))


class MemoryApi:
    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.calls: Counter[str] = Counter()
        self.away = False  # every call fails as if the server were down
        self.expired_before = 0  # watches from older resourceVersions are gone
        self._versions = itertools.count(1)
        self._events: list[tuple[int, str, Json]] = []
        self._changed = asyncio.Event()
        self._broken = asyncio.Event()

    def break_watches(self) -> None:
        self._broken.set()
        self._broken = asyncio.Event()

    async def list(self, resource: Resource, namespace: str, selector: str = "") -> tuple[list[Json], str]:
        self._count("list", resource)
        found = [
            copy.deepcopy(one)
            for (plural, where, _), one in self.objects.items()
            if plural == resource.plural and namespace in ("", where) and selected(one, selector)
        ]
        return found, str(self._last())

    async def watch(
        self, resource: Resource, namespace: str, resource_version: str, selector: str = "", seconds: int = 300
    ) -> AsyncIterator[Json]:
        self._count("watch", resource)
        if int(resource_version) < self.expired_before:
            raise ApiError("too old resource version", 410)
        seen, broken = int(resource_version), self._broken
        while True:
            for version, kind, found in [event for event in self._events if event[0] > seen]:
                seen = version
                here = found["kind_"] == resource.plural and namespace in ("", found["metadata"]["namespace"])
                if here and selected(found, selector):
                    yield {"type": kind, "object": {k: v for k, v in found.items() if k != "kind_"}}
            changed = self._changed
            waits = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(broken.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in waits:
                    one.cancel()
            if broken.is_set():
                raise ApiError("the connection broke")

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        self._count("get", resource)
        return copy.deepcopy(self._find(resource, namespace, name))

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Json:
        self._count("create", resource)
        name = body["metadata"]["name"]
        if (resource.plural, namespace, name) in self.objects:
            raise ApiError(f"{name} exists", 409)
        metadata = {"uid": f"uid-{name}", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}
        found = copy.deepcopy({**body, "metadata": {**metadata, **body["metadata"], "namespace": namespace}})
        return self._put(resource, "ADDED", found)

    async def replace(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], subresource: str = ""
    ) -> Json:
        self._count(f"update_{subresource}" if subresource else "update", resource)
        before = self._find(resource, namespace, name)
        self._check(before, body)
        if subresource:
            return self._put(
                resource, "MODIFIED", {**copy.deepcopy(before), subresource: copy.deepcopy(body[subresource])}
            )
        return self._put(resource, "MODIFIED", copy.deepcopy(dict(body)))

    async def patch(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Json:
        self._count("patch", resource)
        before = self._find(resource, namespace, name)
        self._check(before, body)
        found = merged(copy.deepcopy(before), {key: value for key, value in body.items() if key != "status"})
        if found.get("spec") != before.get("spec"):
            found["metadata"]["generation"] += 1
        if "deletionTimestamp" in found["metadata"] and not found["metadata"].get("finalizers"):
            return self.remove(resource, namespace, name)
        return self._put(resource, "MODIFIED", found)

    def delete(self, resource: Resource, namespace: str, name: str) -> None:
        """As a client's: what has finalizers stays until they are gone."""
        found = self._find(resource, namespace, name)
        if found["metadata"].get("finalizers"):
            found = copy.deepcopy(found)
            found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:01Z"
            self._put(resource, "MODIFIED", found)
        else:
            self.remove(resource, namespace, name)

    def remove(self, resource: Resource, namespace: str, name: str) -> Json:
        found = self.objects.pop((resource.plural, namespace, name))
        found["metadata"]["resourceVersion"] = str(next(self._versions))
        self._notify(resource, "DELETED", found)
        return found

    def _count(self, verb: str, resource: Resource) -> None:
        self.calls[f"{verb} {resource.plural}"] += 1
        if self.away:
            raise ApiError("the API server does not answer")

    def _find(self, resource: Resource, namespace: str, name: str) -> Json:
        try:
            return self.objects[resource.plural, namespace, name]
        except KeyError:
            raise ApiError(f"{name} not found", 404) from None

    def _check(self, before: Json, body: Mapping[str, Any]) -> None:
        version = body.get("metadata", {}).get("resourceVersion")
        if version is not None and version != before["metadata"]["resourceVersion"]:
            raise ApiError("the object has been modified", 409)

    def _put(self, resource: Resource, kind: str, found: Json) -> Json:
        found["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[resource.plural, found["metadata"]["namespace"], found["metadata"]["name"]] = found
        self._notify(resource, kind, found)
        return copy.deepcopy(found)

    def _notify(self, resource: Resource, kind: str, found: Json) -> None:
        version = int(found["metadata"]["resourceVersion"])
        self._events.append((version, kind, {**copy.deepcopy(found), "kind_": resource.plural}))
        self._changed.set()
        self._changed = asyncio.Event()

    def _last(self) -> int:
        return self._events[-1][0] if self._events else 0
