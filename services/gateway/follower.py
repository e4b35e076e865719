"""Reads the responses topic on a thread of its own, so that the gateway knows every response, whoever served it."""

import logging
import threading

from anyloop.log import RESPONSES, EventLog, LogError, PoisonEvent
from protos.anyloop.v1 import events_pb2
from services.gateway.ledger import Ledger

logger = logging.getLogger(__name__)
_BATCH = 500


class ResponseFollower:
    """Each gateway reads everything: offsets stand in its own ledger, there is no consumer group."""

    def __init__(self, log: EventLog, ledger: Ledger, poll_s: float = 0.5) -> None:
        self._log, self._ledger, self._poll_s = log, ledger, poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="response-follower", daemon=True)
        self.failure: str | None = None  # why it stopped for good

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def catch_up(self) -> int:
        """Reads what is new and returns how many records that were. Raises LogError."""
        positions, count = self._ledger.positions(), 0
        for partition, end in self._log.end_offsets(RESPONSES).items():
            begin = positions.get(partition, 0)
            while begin < end and not self._stop.is_set():
                begin, read = self._read(partition, begin, end)
                count += read
        return count

    def _read(self, partition: int, begin: int, end: int) -> tuple[int, int]:
        rows, following, read = [], begin, 0
        for record in self._log.read(RESPONSES, partition=partition, offset=begin, limit=_BATCH):
            following, read = record.offset + 1, read + 1
            try:
                response = record.event.unwrap()
            except PoisonEvent:
                continue  # its consumers send it to the dead letters; here it names no response
            if isinstance(response, events_pb2.ResponseEvent):
                rows.append((response.response_id, response.conversation_id or record.event.key))
        if not read:  # nothing left before `end`: the log has dropped it
            following = end
        self._ledger.add_responses(rows, {partition: following})
        return following, read

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.catch_up()
            except LogError as error:
                if not error.retriable:
                    self.failure = f"the responses topic cannot be read: {error}"
                    logger.error(self.failure)
                    return
                logger.warning("the responses topic cannot be read now: %s", error)
            except Exception as error:
                self.failure = f"following the responses topic failed: {error}"
                logger.exception("following the responses topic failed")
                return
            self._stop.wait(self._poll_s)
