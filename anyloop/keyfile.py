"""The file of API keys: who may call, with which keys, how much. Written by `anyloop keys`, read by the gateway.

It holds hashes only. SHA-256 without salt or stretching is right here: a key is 256 random bits, so there is no
dictionary to try and nothing that a slow hash would slow down, while every request has to be checked.

    [keys.mobile-app]                 # the principal, as it stands in every event
    roles = ["generate", "feedback"]
    requests_per_minute = 600         # n choices count as n requests; 0 or absent: no limit, as for all quotas
    feedback_per_minute = 60
    tokens_per_minute = 100000        # prompts and answers; an answer that goes over it ends, the next one waits
    max_running = 16                  # answers at the same time; n choices take n places, or get 400 if n is more
    feedback_on = "own"               # answers to this principal only; absent, "any": all whose id it knows

    [[keys.mobile-app.key]]           # two while a key is replaced
    sha256 = "…64 hex digits of the key's SHA-256…"
    not_after = 2027-01-31T00:00:00Z  # absent: until it is taken out
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

PRINCIPAL = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = "al-"
_BYTES = 32  # of randomness in a key


class Role(StrEnum):
    GENERATE = "generate"
    FEEDBACK = "feedback"
    OPERATE = "operate"
    ADMIN = "admin"


class KeysFileError(ValueError):
    """The keys file cannot be used; the message names the entry and what is wrong."""


@dataclass(frozen=True)
class Quotas:
    """0 is no limit. Each gateway counts for itself."""

    requests_per_minute: int = 0
    feedback_per_minute: int = 0
    tokens_per_minute: int = 0
    max_running: int = 0


@dataclass(frozen=True)
class ApiKey:
    sha256: str
    not_after: datetime | None = None  # aware

    @property
    def fingerprint(self) -> str:
        """What people call the key by. It gives nothing away."""
        return self.sha256[:12]

    def expired(self, now: datetime) -> bool:
        return self.not_after is not None and now >= self.not_after


@dataclass(frozen=True)
class Principal:
    name: str
    roles: frozenset[Role]
    quotas: Quotas
    keys: tuple[ApiKey, ...]
    feedback_on: Literal["any", "own"] = "any"


Principals = dict[str, Principal]
_QUOTAS = tuple(field.name for field in fields(Quotas))
_FIELDS = {"roles", "key", "sha256", "not_after", "feedback_on", *_QUOTAS}


def new_key() -> str:
    """A fresh key, to be given to whoever it is for and stored nowhere else."""
    return _PREFIX + secrets.token_urlsafe(_BYTES)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> Principals:
    """Raises KeysFileError."""
    try:
        return parse_keys(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise KeysFileError(f"cannot read the keys file {path}: {error}") from error


def parse_keys(text: str, path: str) -> Principals:
    """Raises KeysFileError. A file that lets nobody in is an error: it is more likely cut short than meant."""
    try:
        entries = tomllib.loads(text).get("keys", {})
    except tomllib.TOMLDecodeError as error:
        raise KeysFileError(f"cannot read the keys file {path}: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise KeysFileError(f"{path} holds no [keys.NAME] table, so nobody could call; add one or unset keys_file")
    principals: Principals = {}
    owners: dict[str, str] = {}
    for name, entry in entries.items():
        principals[name] = _principal(name, entry)
        for key in principals[name].keys:
            if owners.setdefault(key.sha256, name) != name:
                raise KeysFileError(f"keys {owners[key.sha256]!r} and {name!r} have the same sha256")
    return principals


@contextlib.contextmanager
def only_one_changes(path: Path) -> Iterator[None]:
    """Around reading, changing and writing the file: whoever comes second waits, and does not undo what the first has
    changed. Leaves nothing beside the file. Raises OSError."""
    target = _target(path)
    beside = target.with_name(f".{target.name}.lock")
    descriptor = _locked(beside)
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)
        os.close(descriptor)


def write_keys(path: Path, principals: Principals) -> None:
    """Whole or not at all. Comments of the file before are not kept. Raises OSError.

    A new file is for its owner alone. One that is there keeps its owner, group and mode, and a link goes on leading to
    it: the gateway that reads it may be another user, by another name of the file.
    """
    target = _target(path)
    before = target.stat() if target.exists() else None
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            if before is not None:
                _give(file.fileno(), before)
            file.write(format_keys(principals.values()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)  # a reader finds the file before or the file after
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def format_keys(principals: Iterable[Principal]) -> str:
    """The file's text; `parse_keys` gives the same principals back."""
    blocks = []
    for one in principals:
        name = one.name if re.fullmatch(r"[A-Za-z0-9_-]+", one.name) else f'"{one.name}"'
        roles = ", ".join(f'"{role}"' for role in sorted(one.roles))
        lines = [f"[keys.{name}]", f"roles = [{roles}]"]
        lines += [f"{quota} = {value}" for quota in _QUOTAS if (value := getattr(one.quotas, quota))]
        lines += ['feedback_on = "own"'] if one.feedback_on == "own" else []
        for key in one.keys:
            lines += ["", f"[[keys.{name}.key]]", f'sha256 = "{key.sha256}"']
            if key.not_after:
                lines.append(f"not_after = {key.not_after.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
        blocks.append("\n".join(lines) + "\n")
    return "# API keys: SHA-256 of each, never the key itself. Change it with `anyloop keys`.\n\n" + "\n".join(blocks)


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _locked(path: Path) -> int:
    """An open file at `path`, locked; closing it gives it free."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):  # else who had it took it away: it holds nobody back any more
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _give(descriptor: int, before: os.stat_result) -> None:
    """Owner, group and mode of the file before."""
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(descriptor, before.st_uid, before.st_gid)
        except PermissionError as error:
            raise PermissionError(
                errno.EPERM,
                f"it belongs to user {before.st_uid}, group {before.st_gid}, which only they or root can keep so",
            ) from error
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _principal(name: str, entry: Any) -> Principal:
    if not PRINCIPAL.fullmatch(name):
        raise KeysFileError(f"key {name!r}: a principal is named by 1-64 letters, digits and _ . @ -")
    if not isinstance(entry, dict) or set(entry) - _FIELDS:
        extra = sorted(set(entry) - _FIELDS) if isinstance(entry, dict) else []
        raise KeysFileError(f"key {name!r}: expected a table of {sorted(_FIELDS)}, found also {extra}")
    try:
        roles = frozenset(Role(role) for role in entry["roles"])
    except (KeyError, TypeError, ValueError) as error:
        raise KeysFileError(f"key {name!r}: roles must be a list out of {[str(r) for r in Role]}") from error
    quotas = {quota: entry.get(quota, 0) for quota in _QUOTAS}
    if any(type(value) is not int or value < 0 for value in quotas.values()):
        raise KeysFileError(f"key {name!r}: quotas are whole numbers, 0 for no limit")
    feedback_on = entry.get("feedback_on", "any")
    if feedback_on not in ("any", "own"):
        raise KeysFileError(f'key {name!r}: feedback_on is "any" or "own", not {feedback_on!r}')
    return Principal(name, roles, Quotas(**quotas), _keys(name, entry), feedback_on)


def _keys(name: str, entry: Mapping[str, Any]) -> tuple[ApiKey, ...]:
    tables = entry.get("key", [])
    if not isinstance(tables, list) or any(not isinstance(one, dict) for one in tables):
        raise KeysFileError(f"key {name!r}: write each key as a table [[keys.{name}.key]]")
    if "sha256" in entry or "not_after" in entry:  # a principal with one key, in the short form
        tables = [{field: entry[field] for field in ("sha256", "not_after") if field in entry}, *tables]
    if not tables:
        raise KeysFileError(f"key {name!r}: it has no key; add [[keys.{name}.key]] with its sha256, or take it out")
    found = tuple(_key(name, table) for table in tables)
    if len({key.sha256 for key in found}) < len(found):
        raise KeysFileError(f"key {name!r}: the same sha256 stands there twice")
    return found


def _key(name: str, table: Mapping[str, Any]) -> ApiKey:
    if extra := sorted(set(table) - {"sha256", "not_after"}):
        raise KeysFileError(f"key {name!r}: a key has sha256 and not_after, found also {extra}")
    digest = str(table.get("sha256", "")).lower()
    if not _DIGEST.fullmatch(digest):
        raise KeysFileError(
            f"key {name!r}: sha256 must be the 64 hex digits of the key's SHA-256, never the key itself"
        )
    not_after = table.get("not_after")
    if not_after is not None and not isinstance(not_after, datetime):
        raise KeysFileError(f"key {name!r}: not_after is a time without quotes, like 2027-01-31T00:00:00Z")
    if not_after is not None and not_after.tzinfo is None:
        raise KeysFileError(f"key {name!r}: not_after {not_after} names no time zone; end it with Z")
    return ApiKey(digest, not_after)
