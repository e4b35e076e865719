"""Reads the responses topic on a thread of its own, so that the gateway knows every response, whoever served it."""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from anyloop.log import RESPONSES, EventLog, LogError, PoisonEvent
from anyloop.log.kafka_settings import KafkaAddress
from protos.anyloop.v1 import events_pb2
from services.gateway.ledger import Ledger, LedgerError

logger = logging.getLogger(__name__)
_BATCH = 500
_SAY_SECONDS = 60.0  # between two log lines on the same trouble
_PAUSE_SECONDS = 2.0  # after a failure
_CLOSE_SECONDS = 2.0
_FIRST_LOOK = timedelta(days=7)  # a new ledger begins so far back: who speaks of an older answer names no new one


def log_identity(url: str) -> str:
    """The same for every way to write the URL of one log: its brokers in any order and its prefix, or its path."""
    parts = urlsplit(url)
    if parts.scheme == "kafka":
        address = KafkaAddress.from_url(url)
        return f"kafka {','.join(sorted(address.servers))} {address.prefix}"
    return f"{parts.scheme} {Path(unquote(parts.path)).resolve()}"


class ResponseFollower:
    """Each gateway reads everything: offsets stand in its own ledger, there is no consumer group."""

    def __init__(self, log: EventLog, ledger: Ledger, poll_s: float = 0.5) -> None:
        self._log, self._ledger, self._poll_s = log, ledger, poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="response-follower", daemon=True)
        self.trouble: str | None = None  # why it cannot read now; it tries again
        self.failure: str | None = None  # why it cannot without a person: it has stopped, or the log refuses it

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """A read under way ends when the log is closed; the thread then finds that it was stopped."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

    def catch_up(self) -> int:
        """Reads what is new and returns how many records that were. Raises LogError, LedgerError."""
        positions, count = self._ledger.positions(), 0
        for partition, end in self._log.end_offsets(RESPONSES).items():
            begin = positions.get(partition)
            if begin is not None and begin > end:
                logger.warning(
                    "%s/%d ends at %d, %d were read: this is another log, reading it anew",
                    RESPONSES,
                    partition,
                    end,
                    begin,
                )
                begin = None
            if begin is None:
                begin = self._begin(partition, end)
            while begin < end and not self._stop.is_set():
                begin, read = self._read(partition, begin, end)
                count += read
        return count

    def _begin(self, partition: int, end: int) -> int:
        since = datetime.now(UTC) - _FIRST_LOOK
        recent = self._log.read(RESPONSES, partition=partition, since=since, limit=1)
        begin = next((record.offset for record in recent), end)
        self._ledger.add_responses((), {partition: begin})
        return begin

    def _read(self, partition: int, begin: int, end: int) -> tuple[int, int]:
        rows, following, read = [], begin, 0
        for record in self._log.read(RESPONSES, partition=partition, offset=begin, limit=_BATCH):
            following, read = record.offset + 1, read + 1
            try:
                response = record.event.unwrap()
            except PoisonEvent:
                continue  # its consumers send it to the dead letters; here it names no response
            if isinstance(response, events_pb2.ResponseEvent):
                rows.append((response.response_id, response.conversation_id or record.event.key, response.principal))
        if not read:  # nothing left before `end`: the log has dropped it
            following = end
        self._ledger.add_responses(rows, {partition: following})
        return following, read

    def _run(self) -> None:
        said = float("-inf")
        while not self._stop.is_set():
            pause = self._poll_s
            try:
                self.catch_up()
                self.trouble = self.failure = None
            except (LogError, LedgerError, ValueError) as error:  # ValueError: settings that cannot be right
                if self._stop.is_set():
                    return
                pause = _PAUSE_SECONDS
                self.trouble = f"the responses topic cannot be read now: {error}"
                lasting = isinstance(error, ValueError) or (isinstance(error, LogError) and not error.retriable)
                self.failure = f"the responses topic cannot be read: {error}" if lasting else None
                if time.monotonic() - said > _SAY_SECONDS:
                    said = time.monotonic()
                    logger.log(logging.ERROR if lasting else logging.WARNING, self.trouble)
            except Exception as error:
                if not self._stop.is_set():
                    self.failure = f"following the responses topic failed: {error}"
                    logger.exception("following the responses topic failed")
                return
            self._stop.wait(pause)
