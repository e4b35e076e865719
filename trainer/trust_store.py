"""What was found out about statements, for good: later rounds replay the critiques of earlier ones, and a statement
that was not believed then must not come back in by that door."""

from collections.abc import Iterable, Mapping

from trainer.state_file import StateFile


class TrustStore:
    """Rows of the trainer's state file; belongs to the loop that owns it."""

    def __init__(self, state: StateFile) -> None:
        self._state = state

    def keep(self, round_id: int, trust: Mapping[str, float]) -> None:
        """How far a round's statements are believed, by feedback id; all at once."""
        with self._state.transaction():
            for name, weight in trust.items():
                self._state.execute("INSERT OR REPLACE INTO trust VALUES (?, ?, ?)", (name, round_id, weight))

    def of_round(self, round_id: int) -> dict[str, float]:
        """What this round found before it was interrupted; empty where it had not come so far."""
        return dict(self._state.rows("SELECT id, trust FROM trust WHERE round = ?", (round_id,)))

    def of(self, feedback_ids: Iterable[str]) -> dict[str, float]:
        """Of those among `feedback_ids` that were judged at all."""
        known = dict(self._state.rows("SELECT id, trust FROM trust"))
        return {name: known[name] for name in feedback_ids if name in known}
