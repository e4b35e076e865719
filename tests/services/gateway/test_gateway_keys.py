"""Keys that come, change, end and go while the gateway runs; and quotas of tokens and of answers at the same time."""

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from anyloop.audit import audit_events
from anyloop.keyfile import ApiKey, Principal, Quotas, Role, hash_key, write_keys
from anyloop.log import EventLog, open_log
from anyloop.telemetry.metrics import KEYS_RELOADS
from protos.anyloop.v1 import policy_pb2
from services.gateway.dataplane import DataPlane
from services.gateway.errors import GatewayError, Status
from services.gateway.generation import answer_all, choices, interleave
from services.gateway.key_watch import KeysWatcher
from services.gateway.keys import KeyRing

SAYS = {"messages": [{"role": "user", "content": "hello"}]}
ALL = frozenset({Role.GENERATE, Role.FEEDBACK})


def principal(name: str, *keys: str, roles: frozenset[Role] = ALL, **quotas: int) -> Principal:
    return Principal(name, roles, Quotas(**quotas), tuple(ApiKey(hash_key(key)) for key in keys or (f"key-{name}",)))


def ring_of(*principals: Principal, **clocks: Any) -> KeyRing:
    return KeyRing({one.name: one for one in principals}, **clocks)


def mount(folder: Path, *principals: Principal) -> Path:
    """As a Kubernetes Secret: keys.toml -> ..data/keys.toml, ..data -> a folder that is replaced as a whole."""
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    write_keys(version / "keys.toml", {one.name: one for one in principals})
    link = folder / "..new"
    link.symlink_to(version.name)
    os.replace(link, folder / "..data")
    path = folder / "keys.toml"
    if not path.is_symlink():
        path.symlink_to("..data/keys.toml")
    return path


async def status_of(world: Any, key: str) -> int:
    reply = await world.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    return int(reply.status_code)


async def until(world: Any, key: str, status: int) -> None:
    for _ in range(250):
        if await status_of(world, key) == status:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"{key} is not answered with {status}")


async def test_a_revoked_key_is_refused_and_a_new_one_known_without_a_restart(start: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    path = mount(secret, principal("app", "old"), principal("boss", "boss", roles=frozenset({Role.OPERATE})))
    world = await start(keys_file=path, keys_reload_s=0.05)
    assert await status_of(world, "old") == 200
    mount(secret, principal("app", "new", "old"), principal("boss", "boss", roles=frozenset({Role.OPERATE})))
    await until(world, "new", 200)
    assert await status_of(world, "old") == 200, "both hold while a key is replaced"
    mount(secret, principal("app", "new"), principal("boss", "boss", roles=frozenset({Role.OPERATE})))
    await until(world, "old", 401)
    assert await status_of(world, "new") == 200
    (first, second) = [one for _, one in audit_events(world.log)]
    assert (first.action, first.actor, first.outcome) == ("keys.reload", "gateway", "done")
    assert hash_key("new")[:12] in first.details_json
    assert hash_key("new") not in first.details_json
    assert "keys_removed" in second.details_json


@pytest.fixture
def log(tmp_path: Path) -> Any:
    with open_log(f"sqlite://{tmp_path}/log.db") as log:
        log.ensure_topics()
        yield log


@pytest.mark.parametrize("broken", ["[keys", "", None], ids=["cut-short", "empty", "gone"])
def test_a_broken_file_keeps_the_keys_and_is_said_counted_and_audited_once(
    tmp_path: Path, log: EventLog, broken: str | None
) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, {"app": principal("app")})
    ring = KeyRing.load(path)
    watcher = KeysWatcher(path, ring, log, 60.0)
    watcher.start()
    before = KEYS_RELOADS.labels("failed")._value.get()
    path.unlink() if broken is None else path.write_text(broken)
    for _ in range(3):
        watcher.look()
    assert ring.authenticate("Bearer key-app").principal == "app"
    assert KEYS_RELOADS.labels("failed")._value.get() == before + 1
    assert "keys.toml" in watcher.complaint
    write_keys(path, {"app": principal("app", "next")})
    watcher.look()
    assert watcher.complaint == ""
    assert ring.authenticate("Bearer next").principal == "app"
    watcher.close()
    assert [(one.outcome, one.subject) for _, one in audit_events(log)] == [("failed", str(path)), ("done", str(path))]


def test_a_file_that_is_written_again_unchanged_is_no_event(tmp_path: Path, log: EventLog) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, {"app": principal("app")})
    watcher = KeysWatcher(path, KeyRing.load(path), log, 60.0)
    watcher.start()
    write_keys(path, {"app": principal("app")})
    watcher.look()
    watcher.close()
    assert list(audit_events(log)) == []


def test_a_log_that_hangs_holds_no_revocation_back(
    tmp_path: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taken, append = tmp_path / "keys.toml", threading.Event(), log.append

    def slow(*arguments: Any) -> Any:
        assert taken.wait(20)
        return append(*arguments)

    monkeypatch.setattr(log, "append", slow)
    write_keys(path, {name: principal(name) for name in ("a", "b", "c")})
    ring = KeyRing.load(path)
    watcher = KeysWatcher(path, ring, log, 0.02)
    watcher.start()
    try:
        for gone in ("a", "b"):
            write_keys(path, {name: one for name, one in ring.principals.items() if name != gone})
            for _ in range(250):
                if gone not in ring.principals:
                    break
                time.sleep(0.02)
            assert gone not in ring.principals, "the entry about it may wait, the revocation does not"
    finally:
        taken.set()
        watcher.close()
    assert [json.loads(one.details_json)["principals_removed"] for _, one in audit_events(log)] == [["a"], ["b"]]


def test_a_key_ends_by_itself_at_its_time() -> None:
    now = [datetime(2027, 1, 30, 23, 59, tzinfo=UTC)]
    key = ApiKey(hash_key("k"), datetime(2027, 1, 31, tzinfo=UTC))
    ring = ring_of(Principal("app", ALL, Quotas(), (key,)), today=lambda: now[0])
    assert ring.authenticate("Bearer k").principal == "app"
    now[0] += timedelta(minutes=1)
    with pytest.raises(GatewayError, match=r"expired \(2027-01-31 00:00 UTC\)") as refused:
        ring.authenticate("Bearer k")
    assert (refused.value.status, refused.value.code) == (Status.UNAUTHENTICATED, "expired_api_key")


def test_used_quota_stays_used_when_the_keys_change() -> None:
    """Else whoever can have a file rewritten could ask without end."""
    ring = ring_of(principal("app", requests_per_minute=2), clock=lambda: 0.0)
    caller = ring.authenticate("Bearer key-app")
    ring.require(caller, Role.GENERATE)
    ring.require(caller, Role.GENERATE)
    ring.adopt({"app": principal("app", "next", requests_per_minute=100)})
    with pytest.raises(GatewayError, match="over the quota of 100 requests"):
        ring.require(ring.authenticate("Bearer next"), Role.GENERATE)


def test_a_lower_limit_holds_at_once() -> None:
    ring = ring_of(principal("app", requests_per_minute=100), clock=lambda: 0.0)
    ring.require(ring.authenticate("Bearer key-app"), Role.GENERATE)
    ring.adopt({"app": principal("app", requests_per_minute=1)})
    caller = ring.authenticate("Bearer key-app")
    ring.require(caller, Role.GENERATE)
    with pytest.raises(GatewayError):
        ring.require(caller, Role.GENERATE)


def test_who_has_used_too_many_tokens_waits_until_they_are_paid_back() -> None:
    now = [0.0]
    ring = ring_of(principal("app", tokens_per_minute=60), clock=lambda: now[0])
    caller = ring.authenticate("Bearer key-app")
    ring.require(caller, Role.GENERATE)  # takes one
    ring.charge_tokens("app", 79)  # 20 more than a minute's worth
    with pytest.raises(GatewayError, match="60 tokens a minute") as refused:
        ring.require(caller, Role.GENERATE)
    assert refused.value.retry_after_s == pytest.approx(21.0)
    now[0] = 21.0
    ring.require(caller, Role.GENERATE)


async def test_tokens_of_an_answer_count_also_when_the_client_goes_away(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, {"app": principal("app", tokens_per_minute=1)})
    world = await start(keys_file=path)
    headers = {"Authorization": "Bearer key-app"}
    async with world.http.stream("POST", "/v1/chat/completions", json={**SAYS, "stream": True}, headers=headers) as one:
        assert one.status_code == 200
        async for line in one.aiter_lines():
            if "content" in line:
                break
    for _ in range(100):
        reply = await world.http.post("/v1/chat/completions", json=SAYS, headers=headers)
        if int(reply.headers.get("retry-after", 0)) > 60:  # the answer's end is noticed a moment after the client left
            break
        await asyncio.sleep(0.02)
    assert reply.status_code == 429
    assert "tokens a minute" in reply.json()["error"]["message"]
    assert int(reply.headers["retry-after"]) > 60, "a minute's worth is one token, and several were used"


async def test_only_so_many_answers_run_at_the_same_time(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, {"app": principal("app", max_running=2), "other": principal("other")})
    world = await start(keys_file=path)
    post, headers = world.http.post, {"Authorization": "Bearer key-app"}
    talks = {"messages": [{"role": "user", "content": "silence"}], "stream": True}
    async with world.http.stream("POST", "/v1/chat/completions", json=talks, headers=headers) as running:
        assert running.status_code == 200
        for stream in (False, True):
            refused = await post("/v1/chat/completions", json={**SAYS, "n": 2, "stream": stream}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_running")
            assert refused.headers["retry-after"] == "1"
        assert (await post("/v1/chat/completions", json=SAYS, headers=headers)).status_code == 200
    await asyncio.wait_for(world.policy.cancelled.wait(), 10)
    for stream in (False, True, False):  # an answer that has ended gives its place back
        for _ in range(100):
            reply = await post("/v1/chat/completions", json={**SAYS, "n": 2, "stream": stream}, headers=headers)
            if reply.status_code == 200:
                break
            await asyncio.sleep(0.02)  # the gateway notices a moment after the policy service that the client left
        assert reply.status_code == 200
    other = {"Authorization": "Bearer key-other"}
    assert (await post("/v1/chat/completions", json={**SAYS, "n": 3}, headers=other)).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
async def test_where_not_all_choices_find_a_place_none_is_begun(streamed: bool) -> None:
    begun: list[str] = []

    class Plane:
        keys = ring_of(principal("app", max_running=2))
        stream = DataPlane.stream

        async def _answer(self, asked: policy_pb2.GenerateRequest, _: float | None) -> AsyncGenerator[Any, None]:
            begun.append(asked.response_id)
            await asyncio.sleep(60)
            yield

    plane: Any = Plane()
    requests = choices(policy_pb2.GenerateRequest(response_id="first", principal="app"), 2)
    with plane.keys.running("app"), pytest.raises(GatewayError, match="1 answers run for this key"):
        await (anext(interleave(plane, requests)) if streamed else answer_all(plane, requests))
    assert begun == []
    with plane.keys.running("app", 2):
        pass  # the refused ones hold no place


async def test_more_choices_than_may_ever_run_are_a_mistake_and_not_to_be_tried_again(
    start: Any, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, {"app": principal("app", max_running=2, requests_per_minute=10)})
    world = await start(keys_file=path)
    post, headers = world.http.post, {"Authorization": "Bearer key-app"}
    bodies = {"/v1/chat/completions": {**SAYS, "n": 3}, "/v1/images/generations": {"prompt": "a circle", "n": 3}}
    for route, body in bodies.items():
        refused = await post(route, json=body, headers=headers)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, "too_many_choices", "n")
        assert "retry-after" not in refused.headers
    assert not world.policy.requests
    for _ in range(4):  # 2 refused requests counted once each, and 4 with 2 choices
        assert (await post("/v1/chat/completions", json={**SAYS, "n": 2}, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("setting", "statuses"),
    [("operate", [401, 403, 200]), ("open", [200, 200, 200]), ("off", [404, 404, 404])],
)
async def test_metrics_on_the_public_port_are_for_operators(
    start: Any, tmp_path: Path, setting: str, statuses: list[int]
) -> None:
    path = tmp_path / "keys.toml"
    boss = principal("boss", roles=frozenset({Role.OPERATE}))
    write_keys(path, {"app": principal("app"), "boss": boss})
    world = await start(keys_file=path, public_metrics=setting)
    headers = [{}, *({"Authorization": f"Bearer key-{name}"} for name in ("app", "boss"))]
    assert [(await world.http.get("/metrics", headers=one)).status_code for one in headers] == statuses


async def test_a_key_for_its_own_answers_speaks_of_no_others(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    tenants = {name: replace(principal(name), feedback_on="own") for name in ("a", "b")}
    write_keys(path, {**tenants, "critic": principal("critic")})
    world = await start(keys_file=path)
    bearer = {name: {"Authorization": f"Bearer key-{name}"} for name in ("a", "b", "critic")}
    ids = {}
    for name in ("a", "b"):
        body = {**SAYS, "conversation_id": "shared"}
        ids[name] = (await world.http.post("/v1/chat/completions", json=body, headers=bearer[name])).json()["id"]

    async def say(name: str, **opinion: str) -> tuple[int, str]:
        reply = await world.http.post("/v1/feedback", json={"critique": "louder", **opinion}, headers=bearer[name])
        return reply.status_code, reply.json().get("error", {}).get("code", "")

    refused = (403, "not_your_response")
    assert await say("a", response_id=ids["a"]) == (200, "")
    assert await say("a", response_id=ids["b"]) == refused
    assert await say("a", response_id="chatcmpl-nobody") == refused, "what does not exist looks the same"
    assert await say("a", conversation_id="shared") == refused
    assert await say("a", response_id=ids["a"], preferred_over=ids["b"]) == refused
    assert await say("critic", response_id=ids["b"]) == (200, ""), "who may speak of any still does"


@pytest.mark.parametrize(("bind", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_a_gateway_open_to_others_without_keys_says_so(
    start: Any, caplog: pytest.LogCaptureFixture, bind: str, warns: bool
) -> None:
    await start(bind=bind)
    assert any("set ANYLOOP_KEYS_FILE" in line for line in caplog.messages) is warns
