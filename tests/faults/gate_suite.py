"""What the gate asks here: one prompt of each subtask, so that a decision takes seconds."""

from anyloop.world.suite import WorldSuite, gate_suite


def one_of_each() -> WorldSuite:
    return gate_suite(per_subtask=1)
