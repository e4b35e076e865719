import asyncio

import uvloop

from services.rpc import loop


def test_services_run_on_uvloop_and_give_their_result() -> None:
    async def service() -> type[asyncio.AbstractEventLoop]:
        return type(asyncio.get_running_loop())

    assert loop.run(service()) is uvloop.Loop
