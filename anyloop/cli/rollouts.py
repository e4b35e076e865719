"""`anyloop rollouts`: PolicyRollouts of a cluster, seen and steered. The controller does the work: this reads what it
writes, and writes what it reads."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, print_json

if TYPE_CHECKING:
    from kubernetes.client import CustomObjectsApi

app = typer.Typer(no_args_is_help=True, help="Rollouts of new versions over the replicas of a cluster.")

_GROUP, _VERSION, _PLURAL = "anyloop.dev", "v1alpha1", "policyrollouts"
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # all that a pod's account may see
_COLOURS = {"Completed": "green", "Idle": "green", "RolledBack": "red", "Aborted": "red", "RollingBack": "red"}
_NOTEWORTHY = {("Available", "False"), ("Degraded", "True"), ("Paused", "True"), ("Mixed", "True")}
Name = Annotated[str, typer.Argument(help="A PolicyRollout; leave out where there is one.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Default: the kubeconfig context's, or the pod's.")]
Kubeconfig = Annotated[str, typer.Option(help="Default: KUBECONFIG, ~/.kube/config, or the pod's service account.")]
Context = Annotated[str, typer.Option(help="A context of the kubeconfig.")]


@app.command("list")
def list_rollouts(
    every: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
    as_json: JsonFlag = False,
) -> None:
    """Every PolicyRollout with its phase, versions and replicas."""
    cluster = _Cluster(namespace, kubeconfig, context)
    found = cluster.all(every)
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("No PolicyRollout" + ("." if every else f" in the namespace {cluster.namespace}: see -A."))
        return
    table = Table("namespace", "name", "phase", "stable", "target", "step", "on target", "message", box=None)
    for one in found:
        status, metadata = one.get("status", {}), one["metadata"]
        replicas = status.get("replicas", {})
        table.add_row(
            metadata["namespace"],
            metadata["name"],
            _coloured(status.get("phase", "no controller yet")),
            status.get("stableVersion", ""),
            status.get("targetVersion", ""),
            status.get("stepSummary", ""),
            f"{replicas.get('target', 0)}/{replicas.get('total', 0)}",
            escape(status.get("message", "")),
        )
    console.print(table)


@app.command()
def status(
    name: Name = "",
    wait: Annotated[float, typer.Option(help="Seconds to wait until nothing is under way.")] = 0.0,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
    as_json: JsonFlag = False,
) -> None:
    """One PolicyRollout: step, replicas by version, measurements, conditions, history.

    With --wait the exit code is 1 when what was under way, or was asked for and not begun, did not complete.
    """
    cluster = _Cluster(namespace, kubeconfig, context)
    rollout = cluster.one(name)
    before = {one["id"] for one in rollout.get("status", {}).get("history", ())}
    deadline = time.monotonic() + wait
    while (pending := _pending(rollout)) and time.monotonic() < deadline:
        time.sleep(1.0)
        rollout = cluster.one(rollout["metadata"]["name"])
    if as_json:
        print_json(rollout)
    else:
        _print(rollout)
    ended = [one for one in rollout.get("status", {}).get("history", ()) if one["id"] not in before]
    if wait and (pending or (ended and ended[-1]["outcome"] != "Completed")):  # the newest come first
        raise typer.Exit(ExitCode.FAILED)


def _pending(rollout: dict[str, Any]) -> bool:
    """Whether a rollout is under way, or the controller has not seen yet what was asked for."""
    found, metadata = rollout.get("status", {}), rollout["metadata"]
    if "run" in found or found.get("observedGeneration", 0) < metadata.get("generation", 0):
        return True
    retried = metadata.get("annotations", {}).get(f"{_GROUP}/retry", "").partition(" ")[0]
    last = next(iter(found.get("history", ())), None)
    return last is not None and last["id"] == retried and last["outcome"] != "Completed"


@app.command()
def advance(name: Name = "", namespace: Namespace = "", kubeconfig: Kubeconfig = "", context: Context = "") -> None:
    """Go on from the present step, whatever its pause and its measurements say."""
    cluster = _Cluster(namespace, kubeconfig, context)
    rollout = cluster.one(name)
    run = _run(rollout, "advance")
    if run["state"] != "Progressing":
        raise CommandError(f"The rollout of {run['version']} is {run['state']}: nothing to advance", ExitCode.REFUSED)
    if rollout["spec"].get("paused"):
        raise CommandError("It is paused: `anyloop rollouts resume` first", ExitCode.REFUSED)
    if "stepReachedAt" not in run:
        raise CommandError(
            f"Step {run['step'] + 1} has not reached its replicas yet: see `anyloop rollouts status`", ExitCode.REFUSED
        )
    cluster.annotate(rollout, "advance", f"{run['id']}/{run['step']}")
    console.print(f"{run['version']}: step {run['step'] + 1} of {run['steps']} is done, it goes on.", highlight=False)


@app.command()
def pause(name: Name = "", namespace: Namespace = "", kubeconfig: Kubeconfig = "", context: Context = "") -> None:
    """Change nothing until `resume`. Replicas stay as they are."""
    _set_paused(_Cluster(namespace, kubeconfig, context), name, True)


@app.command()
def resume(name: Name = "", namespace: Namespace = "", kubeconfig: Kubeconfig = "", context: Context = "") -> None:
    """Go on after `pause`."""
    _set_paused(_Cluster(namespace, kubeconfig, context), name, False)


@app.command()
def abort(name: Name = "", namespace: Namespace = "", kubeconfig: Kubeconfig = "", context: Context = "") -> None:
    """End the rollout that is under way: every replica goes back to the stable version."""
    cluster = _Cluster(namespace, kubeconfig, context)
    rollout = cluster.one(name)
    run = _run(rollout, "abort")
    cluster.annotate(rollout, "abort", run["id"])
    console.print(f"{run['version']} goes back to {run['stable']}.", highlight=False)


@app.command()
def retry(name: Name = "", namespace: Namespace = "", kubeconfig: Kubeconfig = "", context: Context = "") -> None:
    """Roll the version out once more whose rollout failed, was aborted or superseded last."""
    cluster = _Cluster(namespace, kubeconfig, context)
    rollout = cluster.one(name)
    found = rollout.get("status", {})
    if "run" in found:
        raise CommandError(f"{found['run']['version']} is being rolled out now: wait, or abort it", ExitCode.REFUSED)
    last = next(iter(found.get("history", ())), None)
    if last is None or last["outcome"] == "Completed":
        raise CommandError("The last rollout did not fail: there is nothing to retry", ExitCode.REFUSED)
    cluster.annotate(rollout, "retry", last["id"])
    console.print(f"{last['version']} is rolled out once more.", highlight=False)


def _set_paused(cluster: "_Cluster", name: str, paused: bool) -> None:
    rollout = cluster.one(name)
    if bool(rollout["spec"].get("paused")) == paused:
        raise CommandError("It is paused already" if paused else "It is not paused", ExitCode.REFUSED)
    cluster.patch(
        rollout, {"spec": {"paused": paused}, "metadata": {"annotations": {f"{_GROUP}/paused-by": _operator()}}}
    )
    console.print("Paused: replicas stay as they are." if paused else "It goes on.", highlight=False)


def _run(rollout: dict[str, Any], verb: str) -> dict[str, Any]:
    run = rollout.get("status", {}).get("run")
    if run is None:
        message = rollout.get("status", {}).get("message", "the controller has not looked at it yet")
        raise CommandError(f"No rollout is under way, so there is nothing to {verb}: {message}", ExitCode.REFUSED)
    return dict(run)


def _operator() -> str:
    from anyloop.audit import operator

    return operator()


def _coloured(phase: str) -> str:
    return f"[{_COLOURS.get(phase, 'yellow')}]{phase}[/]"


def _print(rollout: dict[str, Any]) -> None:
    found = rollout.get("status", {})
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("phase", _coloured(found.get("phase", "no controller yet")), escape(found.get("message", "")))
    table.add_row("stable", found.get("stableVersion", ""), "the newest promotion in the log")
    if run := found.get("run"):
        table.add_row("target", run["version"], f"step {run['step'] + 1} of {run['steps']}, since {run['startedAt']}")
    replicas = found.get("replicas", {})
    away = replicas.get("unreachable", 0)
    silent = f", [red]{away} do not answer[/]" if away else ""
    table.add_row("replicas", f"{replicas.get('ready', 0)} of {replicas.get('total', 0)} ready{silent}", "")
    for one in found.get("versions", ()):
        table.add_row("", one["version"], f"{one['replicas']} replicas")
    for one in found.get("analysis", ()):
        colour = {"Passed": "green", "Failed": "red"}.get(one["verdict"], "yellow")
        table.add_row(f"metric {one['name']}", f"[{colour}]{one['verdict']}[/]", escape(one.get("message", "")))
    for one in found.get("conditions", ()):
        if (one["type"], one["status"]) in _NOTEWORTHY:
            told = ": ".join(part for part in (one["reason"], one.get("message", "")) if part)
            table.add_row(one["type"].lower(), one["status"], escape(told))
    for one in found.get("history", ()):
        table.add_row("earlier", f"{one['version']} {_coloured(one['outcome'])}", escape(one.get("reason", "")))
    console.print(table)


class _Cluster:
    """PolicyRollouts by way of the kubeconfig. Raises CommandError."""

    def __init__(self, namespace: str, kubeconfig: str, context: str) -> None:
        try:
            from kubernetes import client, config
        except ModuleNotFoundError as error:
            raise CommandError("This needs the Kubernetes client: pip install 'anyloop[k8s]'") from error
        self._refused = client.ApiException
        settings = client.Configuration()
        settings.retries = 1
        own = ""
        try:
            try:
                config.load_kube_config(
                    config_file=kubeconfig or None, context=context or None, client_configuration=settings
                )
                contexts, active = config.list_kube_config_contexts(config_file=kubeconfig or None)
                chosen = next((one for one in contexts if one["name"] == context), active)
                own = chosen["context"].get("namespace", "")
            except config.ConfigException:
                if kubeconfig or context:
                    raise
                config.load_incluster_config(client_configuration=settings)
                own = _POD_NAMESPACE.read_text(encoding="utf-8").strip()
        except (config.ConfigException, OSError) as error:
            raise CommandError(f"No cluster to talk to: {error}. Give --kubeconfig", ExitCode.UNREACHABLE) from error
        self.namespace = namespace or own or "default"
        self._api: CustomObjectsApi = client.CustomObjectsApi(client.ApiClient(settings))

    def all(self, every_namespace: bool = False) -> list[dict[str, Any]]:
        if every_namespace:
            answer = self._call(self._api.list_cluster_custom_object, _GROUP, _VERSION, _PLURAL)
        else:
            answer = self._call(self._api.list_namespaced_custom_object, _GROUP, _VERSION, self.namespace, _PLURAL)
        return list(answer["items"])

    def one(self, name: str) -> dict[str, Any]:
        if name:
            found: dict[str, Any] = self._call(
                self._api.get_namespaced_custom_object, _GROUP, _VERSION, self.namespace, _PLURAL, name
            )
            return found
        every = self.all()
        if len(every) != 1:
            names = ", ".join(one["metadata"]["name"] for one in every) or "none"
            code = ExitCode.USAGE if every else ExitCode.NOT_FOUND
            raise CommandError(f"Name a PolicyRollout; in {self.namespace} there are: {names}", code)
        return every[0]

    def annotate(self, rollout: dict[str, Any], verb: str, about: str) -> None:
        self.patch(rollout, {"metadata": {"annotations": {f"{_GROUP}/{verb}": f"{about} {_operator()}"}}})

    def patch(self, rollout: dict[str, Any], body: dict[str, Any]) -> None:
        name, namespace = rollout["metadata"]["name"], rollout["metadata"]["namespace"]
        self._call(self._api.patch_namespaced_custom_object, _GROUP, _VERSION, namespace, _PLURAL, name, body)

    def _call(self, method: Any, *arguments: Any) -> Any:
        from urllib3.exceptions import HTTPError

        try:
            return method(*arguments, _request_timeout=15)
        except self._refused as error:
            raise _complaint(error, self.namespace) from error
        except HTTPError as error:
            raise CommandError(f"The cluster does not answer: {error}", ExitCode.UNREACHABLE) from error


def _complaint(error: Any, namespace: str) -> CommandError:
    import json

    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = str(error.reason)
    if error.status == 404:
        hint = f"{message} (namespace {namespace}); is the chart installed there, with its CRDs?"
        return CommandError(hint, ExitCode.NOT_FOUND)
    return CommandError(message, ExitCode.UNREACHABLE if error.status >= 500 else ExitCode.REFUSED)
