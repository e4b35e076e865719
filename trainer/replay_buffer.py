"""The pairs of every round, kept beside the join: for replay in later rounds, and so that a killed round goes on with
the very pairs it had made.

Self-made pairs come from sampling against services that move on; they cannot be made again. So they are stored, in one
transaction, before the first step is taken on them.
"""

import hashlib
import json
import random
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.examples import Pair
from trainer.state_file import StateFile


@dataclass(frozen=True)
class Kept:
    """What one round had: `pairs` it made itself (none replayed), and what it reported about them."""

    round_id: int
    pairs: list[Pair]
    metrics: dict[str, Any]
    held_out: frozenset[str] = frozenset()  # sources of the pairs that only watched


class ReplayBuffer:
    """Rows of the trainer's state file; belongs to the loop that owns it."""

    def __init__(self, state: StateFile) -> None:
        self._state = state

    def keep(
        self,
        round_id: int,
        made_of: str,
        pairs: Sequence[Pair],
        metrics: Mapping[str, Any],
        rounds: int,
        held_out: Collection[str] = (),
    ) -> None:
        """Stores a round's pairs, instead of what it had; deletes those of rounds older than the last `rounds`.

        `held_out`: sources of the pairs that the round does not train on, but watches.
        """
        kept = {"metrics": dict(metrics), "pairs": [asdict(pair) for pair in pairs], "held_out": sorted(held_out)}
        body = json.dumps(kept)
        with self._state.transaction():
            self._state.execute(
                "INSERT OR REPLACE INTO pairs (round, made_of, data) VALUES (?, ?, ?)",
                (round_id, made_of, zlib.compress(body.encode())),
            )
            self._state.execute("DELETE FROM pairs WHERE round < ?", (round_id - rounds,))

    def drop(self, round_id: int) -> None:
        """Forgets the pairs of a round that learned nothing: where its feedback counts again, so do its pairs."""
        self._state.execute("DELETE FROM pairs WHERE round = ?", (round_id,))

    def kept(self, round_id: int, made_of: str) -> Kept | None:
        """What this round stored before it was interrupted, if it was made of the same (see `fingerprint`)."""
        rows = self._state.rows("SELECT data FROM pairs WHERE round = ? AND made_of = ?", (round_id, made_of))
        return _read(round_id, rows[0][0]) if rows else None

    def earlier(self, before: int, rounds: int) -> list[tuple[int, Pair]]:
        """(rounds ago, pair) of the `rounds` rounds before round `before`, newest first, that made a candidate.

        Where the gate rejected what a round had made, its machine-made pairs are suspects: only people's own count.
        """
        return [
            (before - kept.round_id, pair)
            for kept, outcome in self._before(before, rounds)
            for pair in kept.pairs
            if outcome != "rejected" or pair.origin != "self-improving"
        ]

    def held_out(self, before: int, rounds: int) -> set[tuple[int, str]]:
        """(rounds ago, source) of what `earlier` gives that those rounds have not trained on."""
        return {
            (before - kept.round_id, source) for kept, _ in self._before(before, rounds) for source in kept.held_out
        }

    def _before(self, before: int, rounds: int) -> list[tuple[Kept, str]]:
        rows = self._state.rows(
            "SELECT pairs.round, pairs.data, round.outcome FROM pairs JOIN round ON round.id = pairs.round"
            " WHERE pairs.round < ? AND pairs.round >= ?"
            " AND round.outcome IN ('promoted', 'approved', 'undecided', 'rejected')"
            " ORDER BY pairs.round DESC",
            (before, before - rounds),
        )
        return [(_read(number, data), outcome) for number, data, outcome in rows]


def fingerprint(*what: object) -> str:
    """Names what a round's pairs were made of: the policy, the feedback, the settings."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]


def replayed(
    earlier: Sequence[tuple[int, Pair]], fresh: Sequence[Pair], share: float, decay: float, seed: int
) -> list[Pair]:
    """Up to `share` * len(fresh) earlier pairs, drawn at random, each of which weighs `decay` per round that it is old
    times what it weighed when it was made, before balance and cap (those are applied anew): its rejected answer says
    less and less about what the policy does now."""
    known = {(pair.prompt, pair.chosen, pair.rejected) for pair in fresh}
    aged = [
        replace(pair, weight=pair.weight * decay**age)
        for age, pair in earlier
        if (pair.prompt, pair.chosen, pair.rejected) not in known
    ]
    return random.Random(seed).sample(aged, min(len(aged), round(share * len(fresh))))


def _read(round_id: int, data: bytes) -> Kept:
    body = json.loads(zlib.decompress(data))
    return Kept(round_id, [_pair(one) for one in body["pairs"]], body["metrics"], frozenset(body.get("held_out", ())))


def _pair(stored: dict[str, Any]) -> Pair:
    tuples = {name: tuple(stored[name]) for name in ("prompt", "chosen", "rejected", "voices")}
    return Pair(**(stored | tuples))
