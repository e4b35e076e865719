"""Videos: eight frames at 8 fps in which one shape steps from cell to cell along a straight line.

Fast is a new cell every second frame, slow every fourth. Steps of whole cells keep the codec's codes compositional:
what stands in a cell, and in which frames, is independent of where the shape goes next.
"""

import numpy as np

from anyloop.world.render.picture import CELL, blank, draw_shape
from anyloop.world.scenes import Clip

FRAMES = 8
FPS = 8.0
CELLS_VISITED = {"slow": 2, "fast": 4}


def path(scene: Clip, line: int, start: int) -> list[tuple[int, int]]:
    """(column, row) of the shape in each frame, on row or column `line`, from cell `start` along the way it goes."""
    visited = CELLS_VISITED[scene.speed]
    along = [start + frame * visited // FRAMES for frame in range(FRAMES)]
    if scene.direction in ("left", "up"):
        along = [3 - cell for cell in along]
    return [(cell, line) if scene.direction in ("left", "right") else (line, cell) for cell in along]


def render_clip(scene: Clip, rng: np.random.Generator, jitter: float = 0.0) -> np.ndarray:
    """uint8 `[8, 64, 64, 3]`. `rng` draws the line it keeps to; `jitter` shifts the whole line, in pixels."""
    line, start = int(rng.integers(1, 3)), (4 - CELLS_VISITED[scene.speed]) // 2
    offset = rng.uniform(-jitter, jitter, 2) if jitter else (0.0, 0.0)
    frames = []
    for column, row in path(scene, line, start):
        frame = blank()
        x, y = (column + 0.5) * CELL + offset[0], (row + 0.5) * CELL + offset[1]
        draw_shape(frame, scene.shape, scene.colour, scene.size, x, y)
        frames.append(frame)
    return np.stack(frames)
