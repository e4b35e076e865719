"""Who is calling, what they may do, and how often. The keys come from `anyloop.keyfile` and may change at any time."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from anyloop.keyfile import ApiKey, KeysFileError, Principal, Principals, Quotas, Role, hash_key, read_keys
from services.gateway.errors import GatewayError, Status, invalid
from services.gateway.quotas import Meters

__all__ = ["ANONYMOUS", "LOCAL_CALLER", "Caller", "KeyRing", "KeysFileError", "Role", "hash_key"]

ANONYMOUS = "anonymous"
_TOKENS = "tokens"


@dataclass(frozen=True)
class Caller:
    """An authenticated principal."""

    principal: str
    roles: frozenset[Role]
    quotas: Quotas = field(default_factory=Quotas)
    own_answers_only: bool = False  # may give feedback on

    def may(self, role: Role) -> bool:
        return role in self.roles or Role.ADMIN in self.roles


LOCAL_CALLER = Caller(ANONYMOUS, frozenset({Role.GENERATE, Role.FEEDBACK, Role.OPERATE}))
_Entry = tuple[ApiKey, Caller]


def _now() -> datetime:
    return datetime.now(UTC)


class KeyRing:
    """All keys by the hash of the key. Without a file, every caller is `anonymous` with all roles but admin."""

    def __init__(
        self,
        principals: Principals | None = None,
        *,
        local: bool = False,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = _now,
    ) -> None:
        self.local = local
        self._today = today
        self._meters = Meters(clock)
        self.adopt(principals or {})

    @classmethod
    def load(cls, path: Path | None, clock: Callable[[], float] = time.monotonic) -> "KeyRing":
        """Reads the keys file; None is local mode. Raises KeysFileError."""
        return cls(local=True, clock=clock) if path is None else cls(read_keys(path), clock=clock)

    @property
    def principals(self) -> Mapping[str, Principal]:
        return self._principals

    def adopt(self, principals: Principals) -> None:
        """From the next request on. What a principal has used of its quotas stays used; running answers go on."""
        callers = {
            one.name: Caller(one.name, one.roles, one.quotas, one.feedback_on == "own") for one in principals.values()
        }
        entries = {key.sha256: (key, callers[one.name]) for one in principals.values() for key in one.keys}
        self._principals, self._callers, self._entries = dict(principals), callers, entries

    def authenticate(self, authorization: str | None) -> Caller:
        """The caller behind an `Authorization: Bearer KEY` header. Raises GatewayError (401)."""
        if self.local:
            return LOCAL_CALLER
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise GatewayError(
                Status.UNAUTHENTICATED, "no API key: send it as 'Authorization: Bearer KEY'", "missing_api_key"
            )
        entry: _Entry | None = self._entries.get(hash_key(key.strip()))
        if entry is None:
            raise GatewayError(
                Status.UNAUTHENTICATED, "this API key is not known; ask the operator for a valid one", "invalid_api_key"
            )
        found, caller = entry
        if found.expired(self._today()):
            raise GatewayError(
                Status.UNAUTHENTICATED,
                f"this API key has expired ({found.not_after:%Y-%m-%d %H:%M} UTC); ask the operator for a new one",
                "expired_api_key",
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
        quotas = caller.quotas
        if role is Role.GENERATE:
            self._meters.take(caller.principal, _TOKENS, quotas.tokens_per_minute, 1)
            self._meters.take(caller.principal, "requests", quotas.requests_per_minute, 1)
        elif role is Role.FEEDBACK:
            self._meters.take(caller.principal, "feedback events", quotas.feedback_per_minute, 1)

    def charge_choices(self, caller: Caller, choices: int) -> None:
        """Counts n choices as n requests; `require` has counted one. Raises GatewayError: 429, and none has counted.

        The wait is for all of them: whoever tries again is counted from the first. 400 where so many may never run at
        the same time, so that trying again would be in vain.
        """
        if 0 < caller.quotas.max_running < choices:
            raise invalid(
                f"'n' is {choices}, and this key may have {caller.quotas.max_running} answers at the same time: "
                "ask for fewer choices",
                "n",
                "too_many_choices",
            )
        if choices > 1:
            limit = caller.quotas.requests_per_minute
            self._meters.take(caller.principal, "requests", limit, choices, given_back=1)

    def charge_tokens(self, principal: str, tokens: int) -> None:
        """Counts an answer that has ended, with its prompt. Who has used too many waits with the next request."""
        self._meters.owe(principal, _TOKENS, self._quotas(principal).tokens_per_minute, tokens)

    def running(self, principal: str, answers: int = 1) -> AbstractContextManager[None]:
        """Around answers. Raises GatewayError (429) where they would be more than the principal may have."""
        return self._meters.running(principal, self._quotas(principal).max_running, answers)

    def _quotas(self, principal: str) -> Quotas:
        caller = self._callers.get(principal)
        return caller.quotas if caller else Quotas()  # local mode, or taken out while its answer ran
