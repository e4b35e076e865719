"""Follows the keys file, so that keys are given, replaced and taken away without a restart."""

import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyloop import audit
from anyloop.keyfile import KeysFileError, Principal, Principals, read_keys
from anyloop.log import EventLog
from anyloop.telemetry.metrics import AUDIT_FAILURES, KEYS_RELOADS
from services.gateway.keys import KeyRing

logger = logging.getLogger(__name__)
_CLOSE_SECONDS = 5.0


class KeysWatcher:
    """Reads the file every `seconds` on a thread of its own and gives the ring what has changed.

    The file is read, not watched for events or times: a Kubernetes Secret is replaced by swapping a link above it. One
    that is broken, cut short or gone leaves the ring as it was; that is logged, counted and audited once, not at every
    look.

    The audit trail is written by a second thread: a log that is slow or away must not hold a revocation back.
    """

    def __init__(self, path: Path, ring: KeyRing, log: EventLog, seconds: float) -> None:
        self._path, self._ring, self._log, self._seconds = path, ring, log, seconds
        self._complaint = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keys-watcher", daemon=True)
        self._entries: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._auditor = threading.Thread(target=self._audit, name="keys-audit", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._auditor.start()

    def close(self) -> None:
        """What was seen reaches the audit trail first, where the log takes it within seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
        self._entries.put(None)
        if self._auditor.is_alive():
            self._auditor.join(_CLOSE_SECONDS)
        if self._auditor.is_alive():
            AUDIT_FAILURES.inc()
            logger.error("the audit trail may lack the last changes of the keys: the log does not take them")

    @property
    def complaint(self) -> str:
        """Why the file cannot be used now; empty when it is what the ring holds."""
        return self._complaint

    def look(self) -> None:
        """Reads the file once."""
        try:
            found = read_keys(self._path)
        except KeysFileError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                KEYS_RELOADS.labels("failed").inc()
                logger.error("the keys stay as they were: %s", error)
                self._record("failed", reason=str(error))
            return
        self._complaint = ""
        if found != self._ring.principals:
            changes = differences(self._ring.principals, found)
            self._ring.adopt(found)
            KEYS_RELOADS.labels("done").inc()
            logger.info("the keys have changed", extra={"changes": changes})
            self._record("done", details=changes)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.look()
            except Exception:  # a gateway whose keys stand still is better than none
                logger.exception("looking at the keys file failed")

    def _record(self, outcome: str, reason: str = "", details: Mapping[str, Any] | None = None) -> None:
        self._entries.put({"outcome": outcome, "reason": reason, "details": details})

    def _audit(self) -> None:
        while (entry := self._entries.get()) is not None:
            try:
                audit.record(self._log, action="keys.reload", subject=str(self._path), actor="gateway", **entry)
            except Exception:  # the next one may be taken
                logger.exception("a change of the keys did not reach the audit trail")


def differences(before: Mapping[str, Principal], after: Principals) -> dict[str, list[str]]:
    """What is new, gone or other, in words that give no key away."""
    keys = [{f"{one.name}/{key.fingerprint}" for one in side.values() for key in one.keys} for side in (before, after)]
    changes = {
        "principals_added": sorted(after.keys() - before.keys()),
        "principals_removed": sorted(before.keys() - after.keys()),
        "principals_changed": sorted(name for name in before.keys() & after.keys() if before[name] != after[name]),
        "keys_added": sorted(keys[1] - keys[0]),
        "keys_removed": sorted(keys[0] - keys[1]),
    }
    return {what: names for what, names in changes.items() if names}
