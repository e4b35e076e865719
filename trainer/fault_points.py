"""Places where a test may kill the learner or the gate, to see that nothing is lost and nothing counts twice.

`ANYLOOP_TRAINER_FAULT=NAME` kills the process by SIGKILL when it first comes to that point, `NAME:3` the third time.
Without the variable a point is one comparison.
"""

import os
import signal
from enum import StrEnum

VARIABLE = "ANYLOOP_TRAINER_FAULT"


class FaultPoint(StrEnum):
    """In the order in which a round comes to them."""

    # Intake
    POLLED = "polled"
    SET_ASIDE = "set_aside"  # a record has gone to the dead letters
    APPLIED = "applied"
    LATE_SET_ASIDE = "late_set_aside"  # feedback beyond the join window has gone to the dead letters
    COMMITTED = "committed"
    # Round
    CLAIMED = "claimed"
    EXAMPLES = "examples"
    CRITIC_TRAINED = "critic_trained"
    CRITIC_PUBLISHED = "critic_published"
    CRITIC_PROMOTED = "critic_promoted"
    CRITIC_SWAPPED = "critic_swapped"
    PAIRS = "pairs"
    TRAINING_SAVED = "training_saved"  # a checkpoint of the training under way stands
    ROLLOUTS_STAGED = "rollouts_staged"  # PPO only
    TRAINED = "trained"
    # Publishing, of the critique model and of the policy
    PUBLISHING = "publishing"
    FILES_WRITTEN = "files_written"
    FILES_SYNCED = "files_synced"
    FILES_RENAMED = "files_renamed"
    # After the candidate stands in the registry
    PUBLISHED = "published"
    ANNOUNCED = "announced"
    GATE_DECIDED = "gate_decided"
    ROLLOUT_DECIDED = "rollout_decided"  # of a candidate that the gate approved
    POLICY_SWAPPED = "policy_swapped"
    REGISTRY_PRUNED = "registry_pruned"
    FINISHED = "finished"
    PRUNED = "pruned"
    # Gate
    GATE_EVALUATED = "gate_evaluated"
    GATE_RECORDED = "gate_recorded"
    GATE_ANNOUNCED = "gate_announced"


_point: FaultPoint | None = None
_left = 0


def arm(setting: str) -> None:
    """`NAME` or `NAME:n`; "" disarms. Raises ValueError on a name that is none: a test that never kills proves
    nothing."""
    global _point, _left
    name, _, count = setting.partition(":")
    _point, _left = (FaultPoint(name), int(count or 1)) if name else (None, 0)


def reached(point: FaultPoint) -> None:
    """Ends the process here and now where this point is armed."""
    global _left
    if point is not _point:
        return
    _left -= 1
    if not _left:
        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE, ""))
