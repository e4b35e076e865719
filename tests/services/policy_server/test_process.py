"""The services as processes: ready, answering, and gone within seconds of SIGTERM with exit code 0."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anyloop.log import RESPONSES, open_log
from protos.anyloop.v1 import policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from tests.services.running_replica import settings_for, user


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def start(name: str, environment: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{name}", env=environment, stderr=asyncio.subprocess.PIPE
    )


async def until_serving(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(60):
        while True:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(0.05)


@pytest.mark.e2e
async def test_processes_serve_and_stop_on_sigterm_with_the_last_answer_in_the_log(
    tmp_path: Path, random_omni: Path
) -> None:
    ports = {"policy": free_port(), "decoders": free_port(), "control": free_port()}
    environment = os.environ | {
        "ANYLOOP_HOME": str(tmp_path),
        "ANYLOOP_MODEL_DIR": str(random_omni),
        "ANYLOOP_HOST": "inprocess",
        "ANYLOOP_POLICY_PORT": str(ports["policy"]),
        "ANYLOOP_DECODER_PORT": str(ports["decoders"]),
        "ANYLOOP_DECODER_TARGET": f"127.0.0.1:{ports['decoders']}",
        "ANYLOOP_POLICY_CONTROL_PORT": str(ports["control"]),
        "OMP_NUM_THREADS": "1",
    }
    processes = [await start(name, environment) for name in ("decoders", "policy")]
    try:
        with open_log(settings_for(tmp_path, random_omni).effective_log_url) as log:
            log.ensure_topics()  # the replica waits for them
            async with (
                grpc.aio.insecure_channel(f"127.0.0.1:{ports['policy']}") as channel,
                grpc.aio.insecure_channel(f"127.0.0.1:{ports['decoders']}") as decoders,
            ):
                await until_serving(decoders)
                await until_serving(channel)
                request = policy_pb2.GenerateRequest(
                    messages=[user("Show me.")],
                    modalities=[types_pb2.MODALITY_IMAGE],
                    sampling=types_pb2.SamplingParams(max_tokens=19),
                )
                events = [event async for event in PolicyServiceStub(channel).Generate(request, timeout=30)]
                assert events[1].HasField("media")
            for process in processes:
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                ends = await asyncio.gather(*(process.communicate() for process in processes))
            assert [process.returncode for process in processes] == [0, 0], ends
            assert [record.event.unwrap().response_id for record in log.read(RESPONSES)] == [
                events[0].started.response_id
            ]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
