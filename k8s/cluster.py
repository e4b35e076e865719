"""The API of a real cluster, by the official client's connection, login and TLS; objects stay plain JSON."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config as connections
from kubernetes.aio.client import ApiClient, Configuration

from anyloop.telemetry import metrics
from k8s.api import ApiError, Json, Resource
from k8s.config import ControllerSettings, service_account_namespace

_CALL_SECONDS = 30.0
_SILENT_SECONDS = 120.0  # of a watch: the server sends a bookmark each minute or so, also where nothing changes
_PAGE = 500
_MERGE_PATCH = "application/merge-patch+json"


class NoCluster(Exception):
    """No cluster is configured, or its configuration cannot be read."""


class Cluster:
    """Satisfies k8s.api.Api."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace  # of this process: the pod's, or the kubeconfig context's

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ControllerSettings) -> AsyncIterator["Cluster"]:
        """Reads the configuration; nothing connects before the first call. Raises NoCluster."""
        configuration = Configuration()
        try:
            namespace = await _configure(configuration, settings)
        except (connections.ConfigException, OSError) as error:
            raise NoCluster(
                f"no cluster to control: {error}. Set ANYLOOP_CONTROLLER_KUBECONFIG, or run in a pod with a service "
                "account"
            ) from error
        client = ApiClient(configuration)
        try:
            yield cls(client, settings.namespace.replace("*", "") or namespace or "default")
        finally:
            await client.close()

    async def list(self, resource: Resource, namespace: str, selector: str = "") -> tuple[list[Json], str]:
        items: list[Json] = []
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._call("list", "GET", resource, resource.path(namespace), query)
            items += page.get("items", ())
            metadata = page.get("metadata", {})
            if not metadata.get("continue"):
                return items, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]

    async def watch(
        self, resource: Resource, namespace: str, resource_version: str, selector: str = "", seconds: int = 300
    ) -> AsyncIterator[Json]:
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        } | ({"labelSelector": selector} if selector else {})
        # A server that died without a word would never end the stream.
        timeout = aiohttp.ClientTimeout(total=seconds + _CALL_SECONDS, sock_read=_SILENT_SECONDS)
        async with self._request("watch", "GET", resource, resource.path(namespace), query, timeout=timeout) as answer:
            try:
                while line := await answer.content.readline():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(str(status.get("message", "")), int(status.get("code", 0)))
                    yield event
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise ApiError(f"the watch of {resource.plural} broke: {_said(error)}") from error

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        return await self._call("get", "GET", resource, resource.path(namespace, name))

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Json:
        return await self._call("create", "POST", resource, resource.path(namespace), body=body)

    async def replace(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], subresource: str = ""
    ) -> Json:
        verb = f"update_{subresource}" if subresource else "update"
        return await self._call(verb, "PUT", resource, resource.path(namespace, name, subresource), body=body)

    async def patch(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Json:
        return await self._call("patch", "PATCH", resource, resource.path(namespace, name), body=body)

    async def _call(
        self,
        verb: str,
        method: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Json:
        async with self._request(verb, method, resource, path, query, body) as answer:
            try:
                document: Json = await answer.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise ApiError(f"{verb} {path}: the answer broke off: {_said(error)}") from error
            return document

    def _request(
        self,
        verb: str,
        method: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> "_Answer":
        return _Answer(self._client, verb, method, resource, path, dict(query or {}), body, timeout)


class _Answer:
    """One call to the server, as a context manager around its answer. Raises ApiError on entering."""

    def __init__(
        self,
        client: ApiClient,
        verb: str,
        method: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        timeout: aiohttp.ClientTimeout | None,
    ) -> None:
        self._client, self._verb, self._method, self._resource = client, verb, method, resource
        self._path, self._query, self._body = path, query, body
        self._timeout = timeout or aiohttp.ClientTimeout(total=_CALL_SECONDS)
        self._answer: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        metrics.CONTROLLER_API_CALLS.labels(self._verb, self._resource.plural).inc()
        headers = {"Accept": "application/json", "User-Agent": "anyloop-controller"}
        if self._method == "PATCH":
            headers["Content-Type"] = _MERGE_PATCH
        path = self._path + (f"?{urlencode(self._query)}" if self._query else "")
        client = self._client
        try:
            await client.update_params_for_auth(headers, [], ["BearerToken"], path, self._method, self._body)
            found = await client.rest_client.request(
                self._method,
                client.configuration.host + path,
                headers=headers,
                body=self._body,
                _request_timeout=self._timeout,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(f"{self._verb} {self._path}: the API server does not answer: {_said(error)}") from error
        self._answer = found.response
        if found.status >= 400:
            try:
                text = await found.response.text()
            except (aiohttp.ClientError, TimeoutError):
                text = ""
            found.response.release()
            raise ApiError(f"{self._verb} {self._path}: {_message(text) or found.reason}", found.status)
        return found.response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._answer is not None:
            self._answer.release() if self._answer.content.at_eof() else self._answer.close()


def _said(error: BaseException) -> str:
    return str(error) or repr(error)  # a timeout says nothing


def _message(text: str) -> str:
    try:
        return str(json.loads(text).get("message", ""))
    except (ValueError, AttributeError):
        return text[:500]


async def _configure(configuration: Configuration, settings: ControllerSettings) -> str:
    """Fills the connection's settings; the namespace that they name, or empty."""
    asked = settings.kubeconfig or os.environ.get("KUBECONFIG")
    own = service_account_namespace()
    if not asked and own and "KUBERNETES_SERVICE_HOST" in os.environ:
        await asyncio.to_thread(connections.load_incluster_config, client_configuration=configuration)
        return own
    path = await asyncio.to_thread(os.path.expanduser, asked or "~/.kube/config")
    context = settings.context or None
    await connections.load_kube_config(
        config_file=path, context=context, client_configuration=configuration, persist_config=False
    )
    contexts, active = connections.list_kube_config_contexts(config_file=path)
    chosen = next((one for one in contexts if one["name"] == context), active)
    return str(chosen.get("context", {}).get("namespace", ""))
