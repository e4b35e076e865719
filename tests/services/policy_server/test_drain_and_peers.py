"""How a replica leaves, what probes see of it, and who may change it: on real ports, with real certificates."""

import asyncio
import logging
import socket
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anyloop.config import Settings
from anyloop.transport import TransportError, open_channel
from protos.anyloop.v1 import control_pb2, policy_pb2
from protos.anyloop.v1.control_pb2_grpc import ControlServiceStub
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from services.policy.__main__ import policy_kind
from services.replica.replica import Replica
from services.rpc.server import LIVENESS
from tests.services.policy_server.fake_host import FakeHost
from tests.services.running_replica import NOT_SERVING, SERVING, Running, eventually, running, settings_for, user
from tests.transport.authority import Authority, with_certificates


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def taking(seconds: float) -> FakeHost:
    """A host whose answers take so long between their first token and their last."""
    host = FakeHost()
    token = {"tokens": [300], "logprobs": [-1.0], "version": "policy-000001"}
    host.script = [token, seconds, {**token, "finished": "stop"}]
    return host


async def begun(policy: Running) -> grpc.aio.UnaryStreamCall:
    request = policy_pb2.GenerateRequest(messages=[user("Go on")], unlogged=True, tokens_only=True)
    call = PolicyServiceStub(policy.channel).Generate(request, timeout=30)
    assert (await call.read()).HasField("started")
    return call


async def rest_of(call: grpc.aio.UnaryStreamCall) -> policy_pb2.GenerateResponse:
    last = policy_pb2.GenerateResponse()
    while (event := await call.read()) is not grpc.aio.EOF:
        last = event
    return last


@pytest.mark.parametrize("seconds", [0.6, 10.5], ids=["short", "longer than the default"])
async def test_an_answer_under_way_ends_within_the_drain(tmp_path: Path, random_omni: Path, seconds: float) -> None:
    settings = settings_for(tmp_path, random_omni, drain_seconds=seconds + 5)
    async with running(settings, host=taking(seconds)) as policy:
        call = await begun(policy)
        watch = health_pb2_grpc.HealthStub(policy.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        stopping = asyncio.create_task(policy.replica.stop())
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="another one"):
            await eventually(lambda: begun(policy), lambda late: late.cancel() and False)
        assert (await rest_of(call)).HasField("finished")
        await stopping


async def test_what_takes_longer_than_the_drain_is_cut_off_with_the_reason(tmp_path: Path, random_omni: Path) -> None:
    async with running(settings_for(tmp_path, random_omni, drain_seconds=0.3), host=taking(20.0)) as policy:
        call = await begun(policy)
        async with asyncio.timeout(5):
            await policy.replica.stop()
        with pytest.raises(grpc.aio.AioRpcError, match="shut down before the answer was complete"):
            await rest_of(call)


async def test_the_health_port_answers_probes_in_plain_text_and_tells_alive_from_ready(
    tmp_path: Path, random_omni: Path
) -> None:
    host = FakeHost()
    host.alive = False
    folder = Authority(tmp_path / "authority").issue(tmp_path / "tls", "policy.anyloop")
    port = free_port()
    settings = with_certificates(settings_for(tmp_path, random_omni, health_port=port), folder)
    async with (
        running(settings, host=host, wait=False) as policy,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        async def health(service: str = "") -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

        assert (await health(), await health(LIVENESS)) == (NOT_SERVING, SERVING)
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # and nothing else is there
            await PolicyServiceStub(channel).Generate(policy_pb2.GenerateRequest()).read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        host.restart()
        await eventually(health, lambda status: status == SERVING)
        assert await health("anyloop.v1.PolicyService") == SERVING
        with pytest.raises(grpc.aio.AioRpcError):  # the service's own port wants a certificate
            await policy.health()


async def test_only_named_peers_change_a_replica_and_a_refusal_is_logged(
    tmp_path: Path, random_omni: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "authority")
    own = authority.issue(tmp_path / "policy", "policy.anyloop")
    settings = with_certificates(
        settings_for(tmp_path, random_omni, control_peers="controller.anyloop, trainer.anyloop"), own
    )

    def peer(name: str) -> Settings:
        return with_certificates(settings, authority.issue(tmp_path / name, name), tls_server_name="policy.anyloop")

    async with running(settings, host=FakeHost(), wait=False) as policy:
        target = f"127.0.0.1:{policy.replica.control_port}"
        activate = control_pb2.ActivateWeightsRequest(version="policy-000099")
        async with open_channel(peer("gateway.anyloop"), target) as channel:
            gateway = ControlServiceStub(channel)
            assert (await gateway.GetStatus(control_pb2.GetStatusRequest())).model_name == "policy"
            with caplog.at_level(logging.WARNING), pytest.raises(grpc.aio.AioRpcError) as caught:
                await gateway.ActivateWeights(activate)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "gateway.anyloop may not call" in str(caught.value.details())
        refused = next(record for record in caplog.records if "refused a control call" in record.getMessage())
        assert vars(refused)["peer"] == "gateway.anyloop"
        assert vars(refused)["method"] == "/anyloop.v1.ControlService/ActivateWeights"
        for name in ("controller.anyloop", "trainer.anyloop"):
            async with open_channel(peer(name), target) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ControlServiceStub(channel).ActivateWeights(activate)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND, "it was let through; there is no such version"


async def test_peers_without_certificates_are_refused_at_the_start(tmp_path: Path, random_omni: Path) -> None:
    settings = settings_for(tmp_path, random_omni, control_peers="controller.anyloop")
    with pytest.raises(TransportError, match="ANYLOOP_TLS_CERT"):
        Replica(settings, policy_kind(settings), FakeHost())
