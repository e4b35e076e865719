"""Mutual TLS over real sockets: who gets in, what a server must be called, and what a renewal does to both sides."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anyloop.config import Settings
from anyloop.transport import open_channel, open_sync_channel, server_credentials
from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc
from tests.transport.authority import Authority, with_certificates
from tests.transport.replicas import SERVICE, Load, Replica, addresses, ask, replicas

PLAIN = Settings(_env_file=None)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def policy(authority: Authority, tmp_path: Path) -> Settings:
    return with_certificates(PLAIN, authority.issue(tmp_path / "policy", "policy.anyloop", "localhost"))


@pytest.fixture
def gateway(authority: Authority, tmp_path: Path) -> Settings:
    folder = authority.issue(tmp_path / "gateway", "gateway.anyloop")
    return with_certificates(PLAIN, folder, tls_server_name="policy.anyloop")


@asynccontextmanager
async def serving(settings: Settings, count: int = 1) -> AsyncIterator[list[Replica]]:
    async with replicas(count, lambda: server_credentials(settings)) as made:
        yield made


async def refusal(settings: Settings, target: str) -> str:
    async with open_channel(settings, target, service=SERVICE) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(caught.value.details())


async def test_both_sides_show_certificates_of_their_authority(policy: Settings, gateway: Settings) -> None:
    async with serving(policy) as (replica,), open_channel(gateway, addresses([replica]), service=SERVICE) as channel:
        assert await ask(channel) == replica.name
        assert replica.names == ["gateway.anyloop"]
        with open_sync_channel(gateway, f"127.0.0.1:{replica.port}") as plain:
            stub = health_pb2_grpc.HealthStub(plain)
            reply = await asyncio.to_thread(stub.Check, health_pb2.HealthCheckRequest(), timeout=5)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_host_name_in_the_target_must_be_in_the_certificate(policy: Settings, gateway: Settings) -> None:
    async with serving(policy) as (replica,):
        by_name = gateway.model_copy(update={"tls_server_name": "is for addresses only"})
        async with open_channel(by_name, f"localhost:{replica.port}", service=SERVICE) as channel:
            assert await ask(channel) == replica.name
        assert "Hostname Verification" in await refusal(by_name, f"127.0.0.1:{replica.port}")
        nameless = gateway.model_copy(update={"tls_server_name": ""})
        assert "Hostname Verification" in await refusal(nameless, f"127.0.0.1:{replica.port}")


async def test_without_a_certificate_of_the_authority_nobody_gets_in(
    policy: Settings, gateway: Settings, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other authority").issue(tmp_path / "stranger", "gateway.anyloop")
    async with serving(policy) as (replica,):
        target = f"127.0.0.1:{replica.port}"
        await refusal(PLAIN, target)
        assert "CERTIFICATE_VERIFY_FAILED" in await refusal(with_certificates(gateway, stranger), target)
        # one that trusts the server, and whose own certificate is of another authority
        forged = gateway.model_copy(update={"tls_cert": stranger / "tls.crt", "tls_key": stranger / "tls.key"})
        await refusal(forged, target)
        assert replica.answered == 0


async def test_a_renewal_under_load_loses_nothing_and_new_connections_use_it(
    authority: Authority, policy: Settings, gateway: Settings
) -> None:
    assert gateway.tls_cert
    assert policy.tls_cert
    async with (
        serving(policy, 3) as made,
        open_channel(gateway, addresses(made), service=SERVICE) as channel,
        Load(channel) as load,
    ):
        await load.all_answer(*made)
        authority.issue(policy.tls_cert.parent, "policy.anyloop", "renewed.anyloop")
        authority.issue(gateway.tls_cert.parent, "gateway-renewed.anyloop")
        await load.until(lambda by: by.total() >= 200)
        assert [replica.names for replica in made] == [["gateway-renewed.anyloop"]] * 3
        renamed = gateway.model_copy(update={"tls_server_name": "renewed.anyloop"})
        async with open_channel(renamed, addresses(made), service=SERVICE) as other:
            assert await ask(other)
    assert load.failures == load.broken == []


async def test_an_answer_under_way_outlives_the_renewal(
    authority: Authority, policy: Settings, gateway: Settings
) -> None:
    assert gateway.tls_cert
    async with serving(policy) as (replica,), open_channel(gateway, addresses([replica]), service=SERVICE) as channel:
        replica.speaking = 0.5
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(policy_pb2.GenerateRequest(), timeout=10)
        assert (await call.read()).started.response_id == replica.name
        authority.issue(gateway.tls_cert.parent, "gateway-renewed.anyloop")
        replica.speaking = 0.0
        assert await ask(channel) == replica.name  # on the new connection
        assert replica.names == ["gateway-renewed.anyloop"]
        assert (await call.read()).HasField("finished")
        assert await call.code() is grpc.StatusCode.OK
        assert channel.get_state() is grpc.ChannelConnectivity.READY


async def test_the_channel_of_a_stopped_loop_closes_what_it_opened(policy: Settings, gateway: Settings) -> None:
    async with serving(policy) as (replica,):
        channel = open_channel(gateway, addresses([replica]), service=SERVICE)
        await channel.channel_ready()
        await channel.close()
        with pytest.raises(grpc.aio.UsageError):
            await ask(channel)


async def test_the_authority_itself_is_changed_under_load_by_trusting_both_first(
    authority: Authority, policy: Settings, gateway: Settings, tmp_path: Path
) -> None:
    successor = Authority(tmp_path / "successor", "successor")
    only_new = successor.ca.read_bytes()
    both = only_new + authority.ca.read_bytes()
    folders = [settings.tls_cert.parent for settings in (policy, gateway) if settings.tls_cert]
    names = ["policy.anyloop", "gateway-of-successor.anyloop"]

    def trust(authorities: bytes) -> None:
        for folder in folders:
            (folder / "ca.new").write_bytes(authorities)
            (folder / "ca.new").replace(folder / "ca.crt")

    async with (
        serving(policy, 3) as made,
        open_channel(gateway, addresses(made), service=SERVICE) as channel,
        Load(channel) as load,
    ):
        await load.all_answer(*made)
        trust(both)
        await load.until(lambda by: by.total() >= 200)
        successor.ca.write_bytes(both)  # what it hands out with its certificates
        for folder, name in zip(folders, names, strict=True):
            successor.issue(folder, name)
            await load.until(lambda by: by.total() >= 200)
        trust(only_new)
        await load.until(lambda by: by.total() >= 200)
        assert {name for replica in made for name in replica.names} == {"gateway-of-successor.anyloop"}
        await refusal(with_certificates(gateway, authority.issue(tmp_path / "late", "late.anyloop")), addresses(made))
    assert load.failures == load.broken == []
