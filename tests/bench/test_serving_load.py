import asyncio

from bench.serving.load import closed_loop


async def test_every_client_has_one_request_at_a_time_and_answers_come_client_by_client() -> None:
    running: set[int] = set()
    most = 0

    async def ask(client: int, prompt: int) -> tuple[int, int]:
        nonlocal most
        assert client not in running
        running.add(client)
        most = max(most, len(running))
        await asyncio.sleep(0.02 if client == 0 else 0.001)  # the first client ends last
        running.remove(client)
        return client, prompt

    answers = await closed_loop(range(7), 3, ask)
    assert answers == [(0, 0), (0, 3), (0, 6), (1, 1), (1, 4), (2, 2), (2, 5)]
    assert most == 3
