"""Which traces the events of the log belong to: a round links to those that it learns from."""

from collections.abc import Iterable, Mapping

from trainer.state_file import StateFile

# OpenTelemetry's SDK keeps that many links of a span.
MOST_LINKS = 128


class TraceStore:
    """Rows of the trainer's state file; belongs to the loop that owns it. Holds only what came with a trace, so it is
    empty where nothing is traced."""

    def __init__(self, state: StateFile) -> None:
        self._state = state
        state.execute(
            "CREATE TABLE IF NOT EXISTS trace (id TEXT PRIMARY KEY, traceparent TEXT NOT NULL, arrived REAL NOT NULL)"
        )

    def keep(self, traceparents: Mapping[str, str], now: float) -> None:
        """By the id of the event."""
        for name, traceparent in traceparents.items():
            self._state.execute("INSERT OR IGNORE INTO trace VALUES (?, ?, ?)", (name, traceparent, now))

    def of(self, event_ids: Iterable[str]) -> list[str]:
        """The traceparents of these events, one for each trace, at most as many as a span can link to."""
        found: dict[str, str] = {}
        for name in event_ids:
            for (traceparent,) in self._state.rows("SELECT traceparent FROM trace WHERE id = ?", (name,)):
                found.setdefault(traceparent.split("-")[1], traceparent)
            if len(found) == MOST_LINKS:
                break
        return list(found.values())

    def forget(self, arrived_before: float) -> None:
        self._state.execute("DELETE FROM trace WHERE arrived < ?", (arrived_before,))
