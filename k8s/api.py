"""The port to the Kubernetes API: a handful of verbs on plain JSON objects. `cluster.py` speaks to a real server."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from k8s.spec import GROUP, PLURAL, VERSION

Json = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind of object by its path in the API."""

    plural: str
    prefix: str  # api/v1 or apis/GROUP/VERSION

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """All namespaces where `namespace` is empty."""
        parts = [self.prefix, *(["namespaces", namespace] if namespace else []), self.plural, name, subresource]
        return "/" + "/".join(part for part in parts if part)


PODS = Resource("pods", "api/v1")
EVENTS = Resource("events", "api/v1")
LEASES = Resource("leases", "apis/coordination.k8s.io/v1")
ROLLOUTS = Resource(PLURAL, f"apis/{GROUP}/{VERSION}")


class ApiError(Exception):
    """The API server refused (`status` is HTTP's) or was not reached (0). `retriable`: the same call may succeed."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def retriable(self) -> bool:
        return self.status == 0 or self.status == 429 or self.status >= 500

    @property
    def conflict(self) -> bool:
        """Somebody else wrote since the object was read, or has created it already."""
        return self.status == 409

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def gone(self) -> bool:
        """The resourceVersion is too old to go on from: list again."""
        return self.status == 410


class Api(Protocol):
    """Raises ApiError. `namespace` empty: all of them. Counted in `anyloop_controller_api_calls_total`."""

    async def list(self, resource: Resource, namespace: str, selector: str = "") -> tuple[list[Json], str]:
        """The objects and the resourceVersion to watch from."""
        ...

    def watch(
        self, resource: Resource, namespace: str, resource_version: str, selector: str = "", seconds: int = 300
    ) -> AsyncIterator[Json]:
        """Watch events with bookmarks, until the server ends it after `seconds`. An ERROR event is raised."""
        ...

    async def get(self, resource: Resource, namespace: str, name: str) -> Json: ...

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Json: ...

    async def replace(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], subresource: str = ""
    ) -> Json:
        """Conflict where the body's resourceVersion is not the present one."""
        ...

    async def patch(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Json:
        """A JSON merge patch; Conflict as for `replace` where it names a resourceVersion."""
        ...
