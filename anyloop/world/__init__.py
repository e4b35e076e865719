"""The reference world: procedural tasks, renderers, exact judges, and an annotator that writes critiques.

Only clients, the gate's suite and the base training of the reference model import it; the trainer never does.
"""

from anyloop.world import tasks
from anyloop.world.tasks import SUBTASKS

__all__ = ["SUBTASKS", "tasks"]
