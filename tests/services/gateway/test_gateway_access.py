"""Keys, roles and quotas, over HTTP and on the key ring itself."""

from pathlib import Path
from typing import Any

import pytest

from services.gateway.errors import GatewayError
from services.gateway.keys import KeyRing, KeysFileError, Role, hash_key

SAYS = {"messages": [{"role": "user", "content": "hello"}]}
OPINION = {"response_id": "r", "critique": "louder"}


def keys_file(folder: Path, **entries: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(
        "".join(f'[keys.{name}]\nsha256 = "{hash_key(f"key-{name}")}"\n{rest}\n' for name, rest in entries.items())
    )
    return path


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-{name}"}


async def test_a_key_opens_what_its_roles_allow_and_names_the_principal(start: Any, tmp_path: Path) -> None:
    path = keys_file(tmp_path, app='roles = ["generate"]', critic='roles = ["feedback"]')
    world = await start(keys_file=path)
    post = world.http.post
    assert (await post("/v1/chat/completions", json=SAYS, headers=bearer("app"))).status_code == 200
    assert world.policy.requests[0].principal == "app"
    assert (await post("/v1/feedback", json=OPINION, headers=bearer("critic"))).status_code == 200
    refused = await post("/v1/feedback", json=OPINION, headers=bearer("app"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_role")
    assert (await post("/v1/chat/completions", json=SAYS, headers=bearer("critic"))).status_code == 403


async def test_without_a_known_key_every_api_route_is_401(start: Any, tmp_path: Path) -> None:
    world = await start(keys_file=keys_file(tmp_path, app='roles = ["generate"]'))
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/feedback"),
        ("POST", "/v1/media"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/anyloop"),
        ("GET", "/v1/loop"),
        ("GET", "/v1/feedback/fb-1"),
    ):
        for header in ({}, {"Authorization": "Bearer nobody"}, {"Authorization": "Basic key-app"}):
            reply = await world.http.request(method, path, headers=header)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), (path, header)


async def test_over_the_quota_is_429_with_the_seconds_to_wait(start: Any, tmp_path: Path) -> None:
    world = await start(keys_file=keys_file(tmp_path, app='roles = ["generate", "feedback"]\nfeedback_per_minute = 2'))
    replies = [await world.http.post("/v1/feedback", json=OPINION, headers=bearer("app")) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    assert (await world.http.post("/v1/chat/completions", json=SAYS, headers=bearer("app"))).is_success


async def test_n_choices_count_as_n_requests(start: Any, tmp_path: Path) -> None:
    world = await start(keys_file=keys_file(tmp_path, app='roles = ["generate"]\nrequests_per_minute = 5'))
    statuses = []
    for n in (3, 3, 2):
        reply = await world.http.post("/v1/chat/completions", json={**SAYS, "n": n}, headers=bearer("app"))
        statuses.append(reply.status_code)
    assert statuses == [200, 429, 200]  # the refused one has counted for nothing: two of five were left
    assert len(world.policy.requests) == 5


@pytest.mark.parametrize(
    ("limit", "before", "n", "wait"),
    [(60, 59, 3, 2), (60, 58, 3, 1), (2, 1, 3, 30), (2, 0, 3, 0)],  # 3 at 2 a minute: no more than the bucket holds
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/images/generations"])
async def test_whoever_waits_as_long_as_told_is_answered(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str, limit: int, before: int, n: int, wait: int
) -> None:
    now = [0.0]
    path = keys_file(tmp_path, app=f'roles = ["generate"]\nrequests_per_minute = {limit}')
    ring = KeyRing.load(path, clock=lambda: now[0])
    monkeypatch.setattr(KeyRing, "load", lambda path: ring)
    world = await start(keys_file=path)
    for _ in range(before):
        ring.require(ring.authenticate("Bearer key-app"), Role.GENERATE)
    body = {**SAYS, "n": n} if "chat" in route else {"prompt": "red", "n": n}
    reply = await world.http.post(route, json=body, headers=bearer("app"))
    if wait:
        assert (reply.status_code, reply.headers["retry-after"]) == (429, str(wait))
        now[0] += wait
        reply = await world.http.post(route, json=body, headers=bearer("app"))
    assert reply.status_code == 200, reply.text
    with pytest.raises(GatewayError):  # all of them have counted
        ring.require(ring.authenticate("Bearer key-app"), Role.GENERATE)


async def test_feedback_is_read_back_only_by_its_author_or_an_operator(start: Any, tmp_path: Path) -> None:
    path = keys_file(tmp_path, a='roles = ["feedback"]', b='roles = ["feedback"]', boss='roles = ["operate"]')
    world = await start(keys_file=path)
    taken = (await world.http.post("/v1/feedback", json=OPINION, headers=bearer("a"))).json()
    found = [await world.http.get(f"/v1/feedback/{taken['id']}", headers=bearer(name)) for name in ("a", "b", "boss")]
    assert [reply.status_code for reply in found] == [200, 404, 200]


async def test_the_same_idempotency_key_of_two_principals_is_two_events(start: Any, tmp_path: Path) -> None:
    path = keys_file(tmp_path, a='roles = ["feedback"]', b='roles = ["feedback"]')
    world = await start(keys_file=path)
    body = {**OPINION, "idempotency_key": "k"}
    ids = {(await world.http.post("/v1/feedback", json=body, headers=bearer(name))).json()["id"] for name in ("a", "b")}
    assert len(ids) == 2


def test_a_quota_refills_evenly_over_the_minute(tmp_path: Path) -> None:
    now = [0.0]
    path = keys_file(tmp_path, app='roles = ["generate"]\nrequests_per_minute = 60')
    ring = KeyRing.load(path, clock=lambda: now[0])
    caller = ring.authenticate("Bearer key-app")
    for _ in range(60):
        ring.require(caller, Role.GENERATE)
    with pytest.raises(GatewayError) as refused:
        ring.require(caller, Role.GENERATE)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    now[0] = 1.0
    ring.require(caller, Role.GENERATE)
    with pytest.raises(GatewayError):
        ring.require(caller, Role.GENERATE)


def test_admin_may_everything_and_local_mode_everything_but_admin(tmp_path: Path) -> None:
    admin = KeyRing.load(keys_file(tmp_path, root='roles = ["admin"]')).authenticate("Bearer key-root")
    local = KeyRing.load(None).authenticate(None)
    assert all(admin.may(role) for role in Role)
    assert [role for role in Role if not local.may(role)] == [Role.ADMIN]
    assert local.principal == "anonymous"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"no \[keys.NAME\] table"),
        ("not toml", "cannot read"),
        ('[keys.a]\nsha256 = "the key itself"\nroles = ["generate"]', "never the key itself"),
        (f'[keys.a]\nsha256 = "{"0" * 64}"\nroles = ["king"]', "roles must be"),
        (f'[keys.a]\nsha256 = "{"0" * 64}"\nroles = []\nrequests_per_minute = -1', "whole numbers"),
        (f'[keys.a]\nsha256 = "{"0" * 64}"\nroles = []\nquota = 1', "quota"),
        (
            f'[keys.a]\nsha256 = "{"0" * 64}"\nroles = []\n[keys.b]\nsha256 = "{"0" * 64}"\nroles = []',
            "the same sha256",
        ),
    ],
)
def test_a_keys_file_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(KeysFileError, match=sentence):
        KeyRing.load(path)
