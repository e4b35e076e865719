"""The process: it drains on SIGTERM, and says in one line why it cannot start."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx


def environment(home: Path, **more: str) -> dict[str, str]:
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    ours = {"ANYLOOP_HOME": str(home), "ANYLOOP_GATEWAY_PORT": ports[0], "ANYLOOP_EDGE_GRPC_PORT": ports[1], **more}
    return {**os.environ, **ours}


def start(env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "services.gateway"]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


async def test_sigterm_ends_the_process_with_code_zero(tmp_path: Path) -> None:
    env = environment(tmp_path / "home")
    process = start(env)
    url = f"http://127.0.0.1:{env['ANYLOOP_GATEWAY_PORT']}/health"
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            for _ in range(300):
                try:
                    assert (await http.get(url)).json() == {"status": "ok"}
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
            ready = await http.get(url.replace("health", "ready"))  # no policy service, no topics
            assert ready.status_code == 503
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, errors
    assert '"message": "gateway stopped"' in errors


async def test_a_bad_keys_file_or_a_taken_port_ends_it_with_a_reason(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        processes = [
            start(environment(tmp_path / "a", ANYLOOP_KEYS_FILE=str(keys))),
            start({**environment(tmp_path / "b"), "ANYLOOP_EDGE_GRPC_PORT": port}),
            start({**environment(tmp_path / "c"), "ANYLOOP_GATEWAY_PORT": port}),
        ]
        ends = [await asyncio.to_thread(process.communicate, timeout=40) for process in processes]
    assert [process.returncode for process in processes] == [1, 1, 1], ends
    assert "holds no [keys.NAME] table" in ends[0][1]
    assert port in ends[1][1]
    assert port in ends[2][1]


async def test_running_answers_end_while_new_requests_go_elsewhere(start: Any) -> None:
    world = await start()
    stream = asyncio.create_task(world.say("slowly", stream=True))
    await world.policy.asked.wait()
    world.stop.set()
    text = (await stream).text
    assert '" slowly"' in text
    assert text.endswith("data: [DONE]\n\n")
