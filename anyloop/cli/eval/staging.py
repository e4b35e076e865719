"""Versions beside the serving one, for as long as an evaluation asks them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import errors
from anyloop.cli.replicas import replica_status
from anyloop.cli.runfile import setting
from anyloop.config import Settings
from anyloop.transport import open_sync_channel
from protos.anyloop.v1 import control_pb2, control_pb2_grpc

_TIMEOUT_S = 120.0
_CODES = {
    grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNREACHABLE,
}


def serving_version(settings: Settings) -> str | None:
    """What the policy replica answers with when no version is named; None when its control service does not answer."""
    status = replica_status(settings, "policy")
    return status.serving_version if status else None


@contextmanager
def staged(settings: Settings, versions: Sequence[str]) -> Iterator[None]:
    """Loads those of `versions` that are not resident through the policy replica's control service, and drops them at
    the end; what serves by then stays.

    Where no control service answers, nothing is done: the gateway answers for versions that are resident and refuses
    the others. Of several replicas only the one behind the control address is asked. Raises CommandError with the
    replica's reason when it refuses.
    """
    status = replica_status(settings, "policy")
    resident = {weights.version for weights in status.weights} if status else set()
    wanted = [version for version in dict.fromkeys(versions) if version and version not in resident] if status else []
    with open_sync_channel(settings, setting(settings, "policy_control_target")) as channel:
        control = control_pb2_grpc.ControlServiceStub(channel)
        loaded: list[str] = []
        try:
            for version in wanted:
                _load(control, version)
                loaded.append(version)
            yield
        finally:
            for version in loaded:
                _unload(control, version)


def _load(control: control_pb2_grpc.ControlServiceStub, version: str) -> None:
    try:
        control.LoadWeights(control_pb2.LoadWeightsRequest(version=version), timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        said = f"{version} cannot be asked: {error.details()}; `anyloop checkpoints list` shows all versions"
        raise CommandError(said, _CODES.get(error.code(), ExitCode.REFUSED)) from error


def _unload(control: control_pb2_grpc.ControlServiceStub, version: str) -> None:
    """One that serves meanwhile, or was dropped for another, needs nothing."""
    try:
        control.UnloadWeights(control_pb2.UnloadWeightsRequest(version=version), timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
            errors.print(f"{version} stays in memory: {error.details()}", highlight=False, markup=False)
