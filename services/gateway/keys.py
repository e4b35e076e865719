"""Who is calling, what they may do, and how often.

The keys file holds hashes only:

    [keys.mobile-app]                 # the principal
    sha256 = "…64 hex digits…"        # of the key itself; `python -m services.gateway.keys mobile-app` makes both
    roles = ["generate", "feedback"]
    requests_per_minute = 600         # 0 or absent: no limit; n choices count as n requests
    feedback_per_minute = 60
"""

import hashlib
import re
import secrets
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from services.gateway.errors import GatewayError, Status

ANONYMOUS = "anonymous"
_FIELDS = {"sha256", "roles", "requests_per_minute", "feedback_per_minute"}


class Role(StrEnum):
    GENERATE = "generate"
    FEEDBACK = "feedback"
    OPERATE = "operate"
    ADMIN = "admin"


class KeysFileError(ValueError):
    """The keys file cannot be used; the message names the entry and what is wrong."""


@dataclass(frozen=True)
class Caller:
    """An authenticated principal. Quotas are per minute; 0 is no limit."""

    principal: str
    roles: frozenset[Role]
    requests_per_minute: int = 0
    feedback_per_minute: int = 0

    def may(self, role: Role) -> bool:
        return role in self.roles or Role.ADMIN in self.roles


LOCAL_CALLER = Caller(ANONYMOUS, frozenset({Role.GENERATE, Role.FEEDBACK, Role.OPERATE}))


@dataclass
class _Bucket:
    """A token bucket that holds one minute's worth."""

    capacity: float
    level: float
    updated: float

    def take(self, now: float, count: int, given_back: int = 0) -> float:
        """Takes `count`, at most what the bucket can hold; returns 0, or the seconds until they are there.

        `given_back` were taken before and are there again first, whether the `count` are granted or not.
        """
        count = min(count, int(self.capacity))
        rate = self.capacity / 60
        self.level = min(self.capacity, self.level + given_back + (now - self.updated) * rate)
        self.updated = now
        if self.level >= count:
            self.level -= count
            return 0.0
        return (count - self.level) / rate


@dataclass
class KeyRing:
    """All keys by the hash of the key. With `local`, every caller is `anonymous` with all roles but admin."""

    callers: dict[str, Caller] = field(default_factory=dict)
    local: bool = False
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._buckets: dict[tuple[str, Role], _Bucket] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path | None, clock: Callable[[], float] = time.monotonic) -> "KeyRing":
        """Reads the keys file; None is local mode. Raises KeysFileError."""
        if path is None:
            return cls(local=True, clock=clock)
        try:
            entries = tomllib.loads(path.read_text()).get("keys", {})
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise KeysFileError(f"cannot read the keys file {path}: {error}") from error
        if not isinstance(entries, dict) or not entries:
            raise KeysFileError(f"{path} holds no [keys.NAME] table, so nobody could call; add one or unset keys_file")
        callers: dict[str, Caller] = {}
        for name, entry in entries.items():
            digest, caller = _read_entry(name, entry)
            if digest in callers:
                raise KeysFileError(f"keys {callers[digest].principal!r} and {name!r} have the same sha256")
            callers[digest] = caller
        return cls(callers, clock=clock)

    def authenticate(self, authorization: str | None) -> Caller:
        """The caller behind an `Authorization: Bearer KEY` header. Raises GatewayError (401)."""
        if self.local:
            return LOCAL_CALLER
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise GatewayError(
                Status.UNAUTHENTICATED, "no API key: send it as 'Authorization: Bearer KEY'", "missing_api_key"
            )
        caller = self.callers.get(hash_key(key.strip()))
        if caller is None:
            raise GatewayError(
                Status.UNAUTHENTICATED, "this API key is not known; ask the operator for a valid one", "invalid_api_key"
            )
        return caller

    def require(self, caller: Caller, role: Role) -> None:
        """Raises GatewayError: 403 without the role, 429 over its quota."""
        if not caller.may(role):
            raise GatewayError(
                Status.PERMISSION_DENIED,
                f"the key of {caller.principal!r} lacks the role '{role}'; ask the operator for a key that has it",
                "missing_role",
            )
        self._charge(caller, role, 1)

    def charge_choices(self, caller: Caller, choices: int) -> None:
        """Counts n choices as n requests; `require` has counted one. Raises GatewayError: 429, and none has counted.

        The wait is for all of them: whoever tries again is counted from the first.
        """
        if choices > 1:
            self._charge(caller, Role.GENERATE, choices, given_back=1)

    def _charge(self, caller: Caller, role: Role, count: int, given_back: int = 0) -> None:
        limit = {Role.GENERATE: caller.requests_per_minute, Role.FEEDBACK: caller.feedback_per_minute}.get(role, 0)
        if limit <= 0:
            return
        now = self.clock()
        with self._lock:
            bucket = self._buckets.setdefault((caller.principal, role), _Bucket(limit, limit, now))
            wait = bucket.take(now, count, given_back)
        if wait:
            what = "requests" if role is Role.GENERATE else "feedback events"
            raise GatewayError(
                Status.RESOURCE_EXHAUSTED,
                f"over the quota of {limit} {what} a minute; try again in {wait:.1f} seconds",
                "rate_limit_exceeded",
                retry_after_s=wait,
            )


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _read_entry(name: str, entry: Any) -> tuple[str, Caller]:
    if not isinstance(entry, dict) or set(entry) - _FIELDS:
        extra = sorted(set(entry) - _FIELDS) if isinstance(entry, dict) else []
        raise KeysFileError(f"key {name!r}: expected a table of {sorted(_FIELDS)}, found also {extra}")
    digest = str(entry.get("sha256", "")).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise KeysFileError(
            f"key {name!r}: sha256 must be the 64 hex digits of the key's SHA-256, never the key itself"
        )
    try:
        roles = frozenset(Role(role) for role in entry["roles"])
    except (KeyError, TypeError, ValueError) as error:
        raise KeysFileError(f"key {name!r}: roles must be a list out of {[str(r) for r in Role]}") from error
    quotas = [entry.get(quota, 0) for quota in ("requests_per_minute", "feedback_per_minute")]
    if any(type(quota) is not int or quota < 0 for quota in quotas):
        raise KeysFileError(f"key {name!r}: quotas are whole numbers, 0 for no limit")
    return digest, Caller(name, roles, *quotas)


def main() -> None:
    """Prints a fresh key and the table that lets it in."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        sys.exit("usage: python -m services.gateway.keys NAME   (letters, digits, - and _)")
    key = "al-" + secrets.token_urlsafe(32)
    print(f"# key (give it to {name}; it is stored nowhere): {key}")
    print(f'[keys.{name}]\nsha256 = "{hash_key(key)}"\nroles = ["generate", "feedback"]')
    print("requests_per_minute = 600\nfeedback_per_minute = 60")


if __name__ == "__main__":
    main()
