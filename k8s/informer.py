"""A local copy of one kind of object, kept by list and watch: one list at the start, then only what changes."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from k8s.api import Api, ApiError, Json, Resource

logger = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, str]  # namespace, name
_WATCH_SECONDS = 300
_FIRST_WAIT = 0.5
_SHORTEST_WATCH = 1.0  # one that ends sooner is a server in trouble, which must not be asked in a tight loop
_LONGEST_WAIT = 30.0


def key_of(thing: Mapping[str, Any]) -> Key:
    metadata = thing["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


class Informer(Generic[T]):
    """`run()` until cancelled. `read` makes of an object what is kept; `changed` hears of it with what was kept before
    and what is kept now (None: there was or is none).

    A watch that ends goes on from the last resourceVersion; one that is too old (410) is begun with a new list, which
    tells of what changed meanwhile, and of nothing else. While the server is away the copy stays as it was.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        namespace: str,
        read: Callable[[Json], T],
        changed: Callable[[Key, T | None, T | None], None],
        selector: str = "",
    ) -> None:
        self._api = api
        self._resource = resource
        self._namespace = namespace
        self._selector = selector
        self._read = read
        self._changed = changed
        self._things: dict[Key, T] = {}
        self._versions: dict[Key, str] = {}
        self._resource_version = ""
        self.synced = asyncio.Event()  # set when the first list is in

    @property
    def things(self) -> Mapping[Key, T]:
        return MappingProxyType(self._things)

    def __iter__(self) -> Iterator[T]:
        return iter(self._things.values())

    def get(self, key: Key) -> T | None:
        return self._things.get(key)

    async def run(self) -> None:
        wait = _FIRST_WAIT
        while True:
            try:
                if not self._resource_version:
                    await self._list()
                began = time.monotonic()
                await self._watch()
                if time.monotonic() - began >= _SHORTEST_WATCH:
                    wait = _FIRST_WAIT
                    continue
                logger.warning("a watch of %s ended at once: again in %.1f s", self._resource.plural, wait)
            except ApiError as error:
                if error.gone:
                    logger.info("the watch of %s is too old to go on: listing again", self._resource.plural)
                    self._resource_version = ""
                    wait = min(wait, _FIRST_WAIT)
                else:
                    logger.warning("watching %s again in %.1f s: %s", self._resource.plural, wait, error)
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, _LONGEST_WAIT)

    async def _list(self) -> None:
        items, version = await self._api.list(self._resource, self._namespace, self._selector)
        found = {key_of(item): item for item in items}
        for key in [key for key in self._things if key not in found]:
            self._remove(key)
        for key, item in found.items():
            self._put(key, item)
        self._resource_version = version
        self.synced.set()

    async def _watch(self) -> None:
        seconds = int(_WATCH_SECONDS * random.uniform(1.0, 2.0))  # many controllers do not come back at once
        events = self._api.watch(self._resource, self._namespace, self._resource_version, self._selector, seconds)
        async for event in events:
            item = event["object"]
            if event["type"] == "DELETED":
                self._remove(key_of(item))
            elif event["type"] in ("ADDED", "MODIFIED"):
                self._put(key_of(item), item)
            self._resource_version = item["metadata"]["resourceVersion"]

    def _put(self, key: Key, item: Json) -> None:
        version = item["metadata"]["resourceVersion"]
        if self._versions.get(key) == version:
            return
        before, now = self._things.get(key), self._read(item)
        self._things[key], self._versions[key] = now, version
        if before != now:
            self._changed(key, before, now)

    def _remove(self, key: Key) -> None:
        before = self._things.pop(key, None)
        self._versions.pop(key, None)
        if before is not None:
            self._changed(key, before, None)
