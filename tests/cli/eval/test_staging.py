"""Versions staged through a control service of the test's own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from anyloop.cli.eval.staging import serving_version, staged
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.config import Settings
from protos.anyloop.v1 import control_pb2, control_pb2_grpc


class Control(control_pb2_grpc.ControlServiceServicer):
    """A replica that knows policy-000000 to -000003 and keeps count."""

    def __init__(self) -> None:
        self.serving = "policy-000000"
        self.resident = ["policy-000000", "policy-000001"]
        self.loaded: list[str] = []
        self.unloaded: list[str] = []

    def GetStatus(
        self, request: control_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> control_pb2.ReplicaStatus:
        weights = [control_pb2.WeightsInfo(version=version) for version in self.resident]
        return control_pb2.ReplicaStatus(serving_version=self.serving, weights=weights)

    def LoadWeights(
        self, request: control_pb2.LoadWeightsRequest, context: grpc.ServicerContext
    ) -> control_pb2.WeightsInfo:
        if request.version > "policy-000003":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no version {request.version!r} in the registry")
        self.loaded.append(request.version)
        return control_pb2.WeightsInfo(version=request.version)

    def UnloadWeights(
        self, request: control_pb2.UnloadWeightsRequest, context: grpc.ServicerContext
    ) -> control_pb2.UnloadWeightsResponse:
        if request.version == self.serving:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it serves")
        if request.version == "policy-000003":
            context.abort(grpc.StatusCode.INTERNAL, "stuck")
        self.unloaded.append(request.version)
        return control_pb2.UnloadWeightsResponse()


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def settings(control: Control) -> Iterator[Settings]:
    server = grpc.server(ThreadPoolExecutor(2))
    control_pb2_grpc.add_ControlServiceServicer_to_server(control, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Settings(_env_file=None, policy_control_target=f"127.0.0.1:{port}")  # type: ignore[call-arg]
    server.stop(0).wait()


def test_what_is_not_resident_is_loaded_and_dropped_again(control: Control, settings: Settings) -> None:
    with staged(settings, ("", "policy-000001", "policy-000002")):
        assert (control.loaded, control.unloaded) == (["policy-000002"], [])
    assert control.unloaded == ["policy-000002"]


def test_it_is_dropped_when_the_evaluation_fails_too(control: Control, settings: Settings) -> None:
    with pytest.raises(RuntimeError), staged(settings, ("policy-000002",)):
        raise RuntimeError
    assert control.unloaded == ["policy-000002"]


def test_a_version_that_was_promoted_meanwhile_stays(control: Control, settings: Settings) -> None:
    with staged(settings, ("policy-000002",)):
        control.serving = "policy-000002"
    assert control.unloaded == []


def test_a_version_that_cannot_be_dropped_is_told_and_the_result_stands(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with staged(settings, ("policy-000003",)):
        pass
    assert "policy-000003 stays in memory: stuck" in capsys.readouterr().err


def test_an_unknown_version_is_told_and_what_was_loaded_before_is_dropped(control: Control, settings: Settings) -> None:
    with (
        pytest.raises(CommandError, match="policy-000009 cannot be asked: no version") as refused,
        staged(settings, ("policy-000002", "policy-000009")),
    ):
        pass
    assert refused.value.code == ExitCode.NOT_FOUND
    assert control.unloaded == ["policy-000002"]


def test_without_a_control_service_the_gateway_decides() -> None:
    away = Settings(_env_file=None, policy_control_target="127.0.0.1:1")  # type: ignore[call-arg]
    with staged(away, ("policy-000002",)):
        pass
    assert serving_version(away) is None


def test_the_serving_version_is_known(settings: Settings) -> None:
    assert serving_version(settings) == "policy-000000"
