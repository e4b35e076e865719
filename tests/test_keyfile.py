import stat
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
