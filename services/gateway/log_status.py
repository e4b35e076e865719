"""How much the log holds and what it promoted, for those who look often: a log that is away keeps nobody waiting."""

import asyncio
from typing import Any

from anyloop.log import CRITIQUES, FEEDBACK, RESPONSES, EventLog, LogError
from anyloop.registry.announcements import Announcements

_PATIENCE_S = 2.0


class LogStatus:
    """At most one look is under way, shared by all who ask meanwhile."""

    def __init__(self, log: EventLog) -> None:
        self._log, self._announcements = log, Announcements(log)
        self._look: asyncio.Task[dict[str, Any]] | None = None

    async def report(self) -> dict[str, Any]:
        """`log` has events by topic, or `error`; `promoted` the versions by lineage."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(asyncio.to_thread(self._read))
        await asyncio.wait({self._look}, timeout=_PATIENCE_S)
        if not self._look.done():
            return _unknown(f"the log has not answered within {_PATIENCE_S:.0f} seconds")
        return self._look.result()

    def _read(self) -> dict[str, Any]:
        try:
            counts = {
                name: sum(self._log.end_offsets(topic).values())
                for name, topic in (("responses", RESPONSES), ("feedback", FEEDBACK), ("critiques", CRITIQUES))
            }
            promoted = {lineage: self._announcements.serving(lineage) for lineage in ("policy", "critique")}
        except (LogError, ValueError) as error:  # ValueError: settings of the connection that cannot be right
            return _unknown(str(error))
        return {"log": counts, "promoted": promoted}


def _unknown(reason: str) -> dict[str, Any]:
    return {"log": {"error": reason}, "promoted": {}}
