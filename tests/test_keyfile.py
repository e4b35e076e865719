import os
import stat
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from anyloop.keyfile import (
    ApiKey,
    KeysFileError,
    Principal,
    Quotas,
    Role,
    format_keys,
    hash_key,
    new_key,
    only_one_changes,
    parse_keys,
    read_keys,
    write_keys,
)

DIGEST = "0" * 64
END = datetime(2027, 1, 31, tzinfo=UTC)
APP = Principal(
    "app",
    frozenset({Role.GENERATE, Role.FEEDBACK}),
    Quotas(600, 60, 100_000, 16),
    (ApiKey("1" * 64, END), ApiKey("2" * 64)),
)

OTHER = replace(APP, name="other")


def test_a_key_has_256_random_bits_and_its_hash_is_plain_sha256() -> None:
    key = new_key()
    assert len(key) == len("al-") + 43  # 32 bytes in base64 without padding
    assert key != new_key()
    assert hash_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    principals = {
        "app": APP,
        "b@team.org": Principal("b@team.org", frozenset({Role.ADMIN}), Quotas(), (ApiKey("3" * 64),), "own"),
    }
    path = tmp_path / "keys.toml"
    write_keys(path, principals)
    assert read_keys(path) == principals
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path], "nothing temporary is left"


def test_one_key_may_stand_in_the_short_form_beside_others() -> None:
    text = f'[keys.app]\nroles = ["generate"]\nsha256 = "{DIGEST}"\n[[keys.app.key]]\nsha256 = "{"1" * 64}"\n'
    assert [key.sha256 for key in parse_keys(text, "k")["app"].keys] == [DIGEST, "1" * 64]


def test_a_key_ends_at_its_time() -> None:
    key = APP.keys[0]
    assert not key.expired(END - timedelta(seconds=1))
    assert key.expired(END)
    assert not APP.keys[1].expired(END)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        pytest.param('roles = ["generate"]', "has no key", id="no-key"),
        pytest.param(f'roles = []\nsha256 = "{DIGEST}"\nnot_after = "soon"', "time without quotes", id="text-time"),
        pytest.param(f'roles = []\nsha256 = "{DIGEST}"\nnot_after = 2027-01-31T00:00:00', "no time zone", id="no-zone"),
        pytest.param('roles = []\nkey = "al-secret"', "write each key as a table", id="key-itself"),
        pytest.param(
            f'roles = []\nsha256 = "{DIGEST}"\n[[keys.app.key]]\nsha256 = "{DIGEST}"', "stands there twice", id="twice"
        ),
        pytest.param(
            f'roles = []\n[[keys.app.key]]\nsha256 = "{DIGEST}"\nrole = "x"', "sha256 and not_after", id="extra"
        ),
        pytest.param(f'roles = []\nmax_running = true\nsha256 = "{DIGEST}"', "whole numbers", id="quota"),
        pytest.param(f'roles = []\nfeedback_on = "all"\nsha256 = "{DIGEST}"', "feedback_on is", id="feedback"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(body: str, sentence: str) -> None:
    with pytest.raises(KeysFileError, match=sentence) as refused:
        parse_keys(f"[keys.app]\n{body}\n", "keys.toml")
    assert "'app'" in str(refused.value)


def test_a_name_that_could_forge_a_line_of_a_log_is_none() -> None:
    with pytest.raises(KeysFileError, match="a principal is named by"):
        parse_keys(f'[keys."a\\nb"]\nroles = []\nsha256 = "{DIGEST}"\n', "keys.toml")


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, {"app": APP})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anyloop.keyfile.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_keys(path, {"other": APP})
    assert list(read_keys(path)) == ["app"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_text_holds_no_quota_that_is_none() -> None:
    text = format_keys([Principal("a", frozenset({Role.GENERATE}), Quotas(max_running=2), (ApiKey(DIGEST),))])
    assert text.splitlines()[2:] == [
        "[keys.a]",
        'roles = ["generate"]',
        "max_running = 2",
        "",
        "[[keys.a.key]]",
        f'sha256 = "{DIGEST}"',
    ]


def test_a_file_that_is_there_keeps_its_mode_and_a_link_goes_on_leading_to_it(tmp_path: Path) -> None:
    """A gateway that runs as another user of the group reads the file by its own name."""
    real, link = tmp_path / "real.toml", tmp_path / "mounted" / "keys.toml"
    write_keys(real, {"app": APP})
    real.chmod(0o640)
    link.parent.mkdir()
    link.symlink_to("../real.toml")
    with only_one_changes(link):
        write_keys(link, {"other": OTHER})
    assert link.is_symlink()
    assert list(read_keys(real)) == ["other"]
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(tmp_path.iterdir()) == [link.parent, real]
    assert list(link.parent.iterdir()) == [link]


@pytest.mark.parametrize("allowed", [True, False])
def test_another_users_file_stays_theirs_or_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, {"app": APP})
    fstat, given = os.fstat, []

    def as_somebody_else(descriptor: int) -> os.stat_result:
        mine = list(fstat(descriptor))
        mine[4] += 1  # the user id
        return os.stat_result(mine)

    def fchown(descriptor: int, user: int, group: int) -> None:
        if not allowed:
            raise PermissionError(1, "Operation not permitted")
        given.append((user, group))

    monkeypatch.setattr("anyloop.keyfile.os.fstat", as_somebody_else)
    monkeypatch.setattr("anyloop.keyfile.os.fchown", fchown)
    if allowed:
        write_keys(path, {"other": OTHER})
        assert given == [(path.stat().st_uid, path.stat().st_gid)]
    else:
        with pytest.raises(PermissionError, match=f"it belongs to user {path.stat().st_uid}"):
            write_keys(path, {"other": OTHER})
    assert list(read_keys(path)) == ["other" if allowed else "app"]
    assert list(tmp_path.iterdir()) == [path]


def test_who_changes_the_file_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, {"app": APP})

    def add(name: str) -> None:
        for turn in range(20):
            with only_one_changes(path):
                found = read_keys(path)
                own = Principal(f"{name}-{turn}", APP.roles, APP.quotas, (ApiKey(hash_key(f"{name}-{turn}")),))
                write_keys(path, {**found, own.name: own})

    adding = [threading.Thread(target=add, args=(name,)) for name in ("a", "b", "c")]
    for one in adding:
        one.start()
    for one in adding:
        one.join()
    assert len(read_keys(path)) == 61
    assert list(tmp_path.iterdir()) == [path], "the lock leaves nothing"
