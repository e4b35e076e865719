"""`anyloop keys`: who may call the gateway. Writes the file that ANYLOOP_KEYS_FILE names; gateways take it up by
themselves."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings
from anyloop.keyfile import (
    PRINCIPAL,
    ApiKey,
    KeysFileError,
    Principal,
    Principals,
    Quotas,
    Role,
    hash_key,
    new_key,
    only_one_changes,
    read_keys,
    write_keys,
)

app = typer.Typer(no_args_is_help=True, help="API keys: new, rotate, revoke, list, check.")
_SPAN = re.compile(r"(\d+)([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_SOON = timedelta(days=14)
_QUOTAS = {
    "requests_per_minute": "{}/min",
    "feedback_per_minute": "feedback {}/min",
    "tokens_per_minute": "tokens {}/min",
    "max_running": "{} at once",
}
_DEFAULT_ROLES = (Role.GENERATE, Role.FEEDBACK)

Name = Annotated[str, typer.Argument(help="The principal: whom the key is for.")]
File = Annotated[Path | None, typer.Option("--file", help="The keys file (default: ANYLOOP_KEYS_FILE).")]
Expires = Annotated[str, typer.Option(help="The key ends after 12h, 90d, ... or at an ISO 8601 time; default: never.")]


@app.command()
def new(
    name: Name,
    role: Annotated[list[Role] | None, typer.Option(help="generate, feedback, operate, admin; repeat it.")] = None,
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 600,
    feedback_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 60,
    tokens_per_minute: Annotated[int, typer.Option(min=0, help="Of prompts and answers; 0: no limit.")] = 0,
    max_running: Annotated[int, typer.Option(min=0, help="Answers at the same time; 0: no limit.")] = 0,
    own_feedback: Annotated[
        bool, typer.Option("--own-feedback", help="Feedback on answers to this principal only.")
    ] = False,
    expires: Expires = "",
    file: File = None,
    as_json: JsonFlag = False,
) -> None:
    """Let somebody in, by default to generate and give feedback. The key is printed once; the file gets its hash."""
    if not PRINCIPAL.fullmatch(name):
        raise CommandError(f"{name!r} names no principal: use 1-64 letters, digits and _ . @ -", ExitCode.USAGE)
    quotas = Quotas(requests_per_minute, feedback_per_minute, tokens_per_minute, max_running)
    key = new_key()
    keys = (ApiKey(hash_key(key), _moment(expires)),)
    feedback_on: Literal["any", "own"] = "own" if own_feedback else "any"
    principal = Principal(name, frozenset(role or _DEFAULT_ROLES), quotas, keys, feedback_on)
    with _changing(file, may_be_missing=True) as principals:
        if name in principals:
            raise CommandError(
                f"{name} has a key already: `anyloop keys rotate {name}` makes the next", ExitCode.REFUSED
            )
        principals[name] = principal
    _hand_over(_file(file), principal, key, as_json)


@app.command()
def rotate(
    name: Name,
    overlap: Annotated[str, typer.Option(help="How long the present keys still hold: 0m, 12h, 7d.")] = "24h",
    expires: Expires = "",
    file: File = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a principal its next key. The present ones end after the overlap; roles and quotas stay."""
    end = _moment(overlap)
    if end is None:
        raise CommandError("Say for how long the present keys still hold: --overlap 24h", ExitCode.USAGE)
    now = datetime.now(UTC)
    key = new_key()
    following = ApiKey(hash_key(key), _moment(expires))
    with _changing(file) as principals:
        held = [one for one in _known(principals, name).keys if not one.expired(now)]
        kept = [replace(one, not_after=min(end, one.not_after or end)) for one in held]
        principal = principals[name] = replace(principals[name], keys=(following, *kept))
    _hand_over(_file(file), principal, key, as_json)


@app.command()
def revoke(
    name: Name,
    key: Annotated[str, typer.Option(help="Only this one, by its fingerprint in `anyloop keys list`.")] = "",
    file: File = None,
) -> None:
    """Take a principal's keys away, or one of them. Gateways refuse it some seconds later; running answers end."""
    with _changing(file) as principals:
        principal = _known(principals, name)
        gone = [one for one in principal.keys if one.fingerprint.startswith(key)]
        if key and len(gone) != 1:
            raise CommandError(
                f"{name} has {len(gone)} keys whose fingerprint begins with {key!r}: `anyloop keys list`",
                ExitCode.NOT_FOUND,
            )
        kept = tuple(one for one in principal.keys if one not in gone)
        if kept:
            principals[name] = replace(principal, keys=kept)
        else:
            del principals[name]
        if not principals:
            raise CommandError(
                f"{name} is the last who may call, and a gateway takes an empty file for a broken one: "
                "let somebody else in first",
                ExitCode.REFUSED,
            )
    console.print(f"{name}: {', '.join(one.fingerprint for one in gone)} revoked.", highlight=False)


@app.command("list")
def list_keys(file: File = None, as_json: JsonFlag = False) -> None:
    """Who may call, with which roles and quotas, and until when. No key can be read from it."""
    rows = _rows(_principals(file), datetime.now(UTC))
    if as_json:
        print_json(rows)
        return
    table = Table("principal", "key", "until (UTC)", "roles", "quotas", box=None)
    for row in rows:
        name, roles = row["principal"], ", ".join(row["roles"])
        quotas = ", ".join(_QUOTAS[quota].format(value) for quota, value in row["quotas"].items() if value)
        if row["feedback_on"] == "own":
            roles = roles.replace(Role.FEEDBACK, "feedback(own)")
        for key in row["keys"]:
            until = (key["not_after"] or "").replace("T", " ")[:16]
            colour = {"expired": "red", "ends soon": "yellow"}.get(key["state"])
            table.add_row(name, key["fingerprint"], f"[{colour}]{until}[/]" if colour else until, roles, quotas)
            name = roles = quotas = ""
    console.print(table)


@app.command()
def check(
    file: File = None,
    key: Annotated[bool, typer.Option("--key", help="Read a key from stdin and say whose it is.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Whether a gateway would take the file, and what is about to end. Exit code 1 when it is broken."""
    path = _file(file)
    try:
        principals = read_keys(path)
    except KeysFileError as error:
        raise CommandError(str(error), ExitCode.FAILED) from error
    now = datetime.now(UTC)
    if key:
        _whose(principals, sys.stdin.readline().strip(), now, as_json)
        return
    warnings = [
        f"{row['principal']}: the key {one['fingerprint']} {one['state']}, {one['not_after']}"
        for row in _rows(principals, now)
        for one in row["keys"]
        if one["state"] == "expired" or all(other["state"] != "valid" for other in row["keys"])
    ]
    if path.stat().st_mode & 0o022:
        warnings.append(f"{path} can be written by others: chmod go-w {path}")
    if as_json:
        print_json({"file": str(path), "principals": len(principals), "warnings": warnings})
        return
    for warning in warnings:
        errors.print(f"[yellow]warning:[/] {warning}", highlight=False, soft_wrap=True)
    console.print(f"{path}: {len(principals)} may call.", highlight=False)


def _whose(principals: Principals, key: str, now: datetime, as_json: bool) -> None:
    digest = hash_key(key)
    for principal in principals.values():
        for one in principal.keys:
            if one.sha256 == digest:
                state = _state(one, now)
                roles = sorted(principal.roles)
                if as_json:
                    print_json({"principal": principal.name, "state": state, "roles": roles})
                else:
                    console.print(f"{principal.name} ({', '.join(roles)}): {state}", highlight=False)
                if state == "expired":
                    raise typer.Exit(ExitCode.REFUSED)
                return
    raise CommandError("this key is nobody's", ExitCode.NOT_FOUND)


def _rows(principals: Principals, now: datetime) -> list[dict[str, Any]]:
    return [
        {
            "principal": one.name,
            "roles": sorted(str(role) for role in one.roles),
            "quotas": vars(one.quotas),
            "feedback_on": one.feedback_on,
            "keys": [
                {
                    "fingerprint": key.fingerprint,
                    "not_after": f"{key.not_after.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if key.not_after else None,
                    "state": _state(key, now),
                }
                for key in one.keys
            ],
        }
        for one in principals.values()
    ]


def _state(key: ApiKey, now: datetime) -> str:
    if key.expired(now):
        return "expired"
    return "ends soon" if key.expired(now + _SOON) else "valid"


def _hand_over(path: Path, principal: Principal, key: str, as_json: bool) -> None:
    """The key to stdout, and to nowhere else."""
    if as_json:
        print_json({"principal": principal.name, "key": key, "file": str(path), **_rows_of(principal)})
        return
    notice = f"{path} has the hash. Give {principal.name} this key; nobody can show it again:"
    errors.print(notice, highlight=False, soft_wrap=True)
    typer.echo(key)


def _rows_of(principal: Principal) -> dict[str, Any]:
    (row,) = _rows({principal.name: principal}, datetime.now(UTC))
    return {"keys": row["keys"], "roles": row["roles"]}


def _file(given: Path | None) -> Path:
    path = given or Settings().keys_file
    if path is None:
        raise CommandError("Name the keys file: --file keys.toml, or ANYLOOP_KEYS_FILE", ExitCode.USAGE)
    return path


@contextmanager
def _changing(given: Path | None, *, may_be_missing: bool = False) -> Iterator[Principals]:
    """The file's principals, to be changed in place; written afterwards, unless an error comes out of the block."""
    path = _file(given)
    try:
        with only_one_changes(path):
            principals = _principals(given, may_be_missing=may_be_missing)
            yield principals
            write_keys(path, principals)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}. Nothing was changed") from error


def _principals(given: Path | None, *, may_be_missing: bool = False) -> Principals:
    path = _file(given)
    if may_be_missing and not path.exists():
        return {}
    try:
        return read_keys(path)
    except KeysFileError as error:
        raise CommandError(str(error), ExitCode.REFUSED) from error


def _known(principals: Principals, name: str) -> Principal:
    if name not in principals:
        raise CommandError(f"{name!r} has no key; these have: {', '.join(sorted(principals))}", ExitCode.NOT_FOUND)
    return principals[name]


def _moment(text: str) -> datetime | None:
    """`90d` from now, or an ISO 8601 time (UTC where it names no zone); None for "". Whole seconds, as in the file."""
    if not text:
        return None
    try:
        if span := _SPAN.fullmatch(text):
            moment = datetime.now(UTC) + timedelta(**{_UNITS[span[2]]: int(span[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:  # not to be read, or after the year 9999
        raise CommandError(f"{text!r} is no time: use 12h, 90d or 2027-01-31T00:00:00Z", ExitCode.USAGE) from error
    return moment.replace(microsecond=0)
