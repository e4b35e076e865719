import asyncio
import signal
import subprocess
import sys

import uvloop

from services.rpc import loop


def test_services_run_on_uvloop_and_give_their_result() -> None:
    async def service() -> type[asyncio.AbstractEventLoop]:
        return type(asyncio.get_running_loop())

    assert loop.run(service()) is uvloop.Loop


WAITS = """
import asyncio
from services.rpc import loop

async def main():
    try:
        print("waits", flush=True)
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)

try:
    loop.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_a_service_that_still_waits_for_something_ends_by_sigterm_in_order() -> None:
    """As the first process of a container, which has no handler of the system's to fall back on."""
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10)[0] == "cleaned up\ninterrupted\n"
    assert process.returncode == 0
