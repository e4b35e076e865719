"""Decoders, policy and gateway as processes with mutual TLS: a client's picture comes through, strangers do not."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anyloop.log import RESPONSES, open_log
from anyloop.transport import open_channel
from protos.anyloop.v1 import control_pb2
from protos.anyloop.v1.control_pb2_grpc import ControlServiceStub
from tests.services.running_replica import eventually, settings_for
from tests.transport.authority import Authority, with_certificates

PORTS = ("GATEWAY", "EDGE_GRPC", "POLICY", "POLICY_CONTROL", "DECODER")


def free_ports() -> dict[str, int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = {name: int(listener.getsockname()[1]) for name, listener in zip(PORTS, listeners, strict=True)}
    for listener in listeners:
        listener.close()
    return ports


@pytest.mark.e2e
async def test_an_answer_with_a_picture_crosses_three_services_over_mutual_tls(
    tmp_path: Path, random_omni: Path
) -> None:
    authority, ports = Authority(tmp_path / "authority"), free_ports()
    home = settings_for(tmp_path / "home", random_omni)

    def environment(service: str, **more: str) -> dict[str, str]:
        folder = authority.issue(tmp_path / "tls" / service, f"{service}.anyloop", "loop.anyloop")
        files = {"CERT": "tls.crt", "KEY": "tls.key", "CA": "ca.crt"}
        return os.environ | {
            "ANYLOOP_HOME": str(home.home),
            "ANYLOOP_MODEL_DIR": str(random_omni),
            "ANYLOOP_HOST": "inprocess",
            **{f"ANYLOOP_{name}_PORT": str(port) for name, port in ports.items()},
            "ANYLOOP_DECODER_TARGET": f"127.0.0.1:{ports['DECODER']}",
            "ANYLOOP_POLICY_TARGET": f"ipv4:127.0.0.1:{ports['POLICY']}",
            "ANYLOOP_POLICY_CONTROL_TARGET": f"127.0.0.1:{ports['POLICY_CONTROL']}",
            **{f"ANYLOOP_TLS_{name}": str(folder / file) for name, file in files.items()},
            "ANYLOOP_TLS_SERVER_NAME": "loop.anyloop",
            "ANYLOOP_CONTROL_PEERS": "operator.anyloop",
            "ANYLOOP_DRAIN_SECONDS": "5",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    edge = authority.issue(tmp_path / "tls" / "edge", "localhost")
    edge_files = {"ANYLOOP_EDGE_TLS_CERT": str(edge / "tls.crt"), "ANYLOOP_EDGE_TLS_KEY": str(edge / "tls.key")}
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"services.{name}", env=environment(name, **more), stderr=asyncio.subprocess.DEVNULL
        )
        for name, more in (("decoders", {}), ("policy", {}), ("gateway", edge_files))
    ]
    url = f"http://127.0.0.1:{ports['GATEWAY']}"
    try:
        with open_log(home.effective_log_url) as log:
            log.ensure_topics()
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:

                async def ready() -> bool:
                    try:
                        return (await http.get("/ready")).is_success
                    except httpx.TransportError:
                        return False

                async with asyncio.timeout(60):
                    while not await ready():  # noqa: ASYNC110 - the other side are processes
                        await asyncio.sleep(0.1)
                body = {"messages": [{"role": "user", "content": "Show me."}], "modalities": ["image"]}
                reply = await http.post("/v1/chat/completions", json={**body, "max_completion_tokens": 19})
                assert reply.status_code == 200, reply.text
                assert "image_url" in reply.text
                state = (await http.get("/v1/loop")).json()["policy"]
                assert state["versions"] == {"policy-000000": 1}

            operator = with_certificates(
                home, authority.issue(tmp_path / "tls" / "operator", "operator.anyloop"), tls_server_name="loop.anyloop"
            )
            async with open_channel(operator, f"127.0.0.1:{ports['POLICY_CONTROL']}") as channel:
                request = control_pb2.LoadWeightsRequest(version="policy-000099")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ControlServiceStub(channel).LoadWeights(request, timeout=10)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['POLICY']}") as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            # a client of the edge has no certificate of its own: it proves itself by its key
            anybody = grpc.ssl_channel_credentials((edge / "ca.crt").read_bytes())
            async with grpc.aio.secure_channel(f"localhost:{ports['EDGE_GRPC']}", anybody) as channel:
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert health.status == health_pb2.HealthCheckResponse.SERVING

            for process in processes:
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                await asyncio.gather(*(process.wait() for process in processes))
            assert [process.returncode for process in processes] == [0, 0, 0]

            async def recorded() -> int:
                return len(list(log.read(RESPONSES)))

            assert await eventually(recorded, lambda count: count == 1)
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
