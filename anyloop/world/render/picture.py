"""Pictures: coloured shapes on a pale ground, one per cell of a 4x4 grid."""

import numpy as np

from anyloop.world.scenes import Picture

SIDE = 64  # pixels
CELL = 16
BACKGROUND = (244, 244, 240)
RGB = {"red": (214, 48, 49), "green": (38, 166, 91), "blue": (52, 92, 214), "yellow": (240, 196, 40)}
RADIUS = {"small": 4.0, "large": 7.0}  # half the width of a shape, pixels
_OVERSAMPLE = 4

# Which cells along the edge line hold the shapes. One or two never stand in the corners alone, where left and top meet.
_SLOTS = {
    "one": ((1,), (2,)),
    "two": ((1, 2), (0, 2), (1, 3), (0, 3)),
    "three": ((0, 1, 2), (1, 2, 3), (0, 1, 3), (0, 2, 3)),
}


def blank() -> np.ndarray:
    return np.tile(np.array(BACKGROUND, dtype=np.uint8), (SIDE, SIDE, 1))


def draw_shape(image: np.ndarray, shape: str, colour: str, size: str, x: float, y: float) -> None:
    """Draws one anti-aliased shape centred on pixel coordinates (x, y) into a uint8 `[64, 64, 3]` image, in place."""
    radius = RADIUS[size]
    steps = (np.arange(SIDE * _OVERSAMPLE) + 0.5) / _OVERSAMPLE
    dx, dy = steps[None, :] - x, steps[:, None] - y
    if shape == "circle":
        inside = dx**2 + dy**2 <= radius**2
    elif shape == "square":
        inside = (np.abs(dx) <= radius) & (np.abs(dy) <= radius)
    else:  # a triangle that stands on its base
        inside = (dy <= radius) & (np.abs(dx) <= (dy + radius) / 2)
    cover = inside.reshape(SIDE, _OVERSAMPLE, SIDE, _OVERSAMPLE).mean(axis=(1, 3))[..., None]
    image[:] = np.round(image * (1 - cover) + np.array(RGB[colour]) * cover).astype(np.uint8)


def cell_of(position: str, slot: int) -> tuple[int, int]:
    """(column, row) of the `slot`-th cell along the edge that `position` names."""
    return {"left": (0, slot), "right": (3, slot), "top": (slot, 0), "bottom": (slot, 3)}[position]


def render_picture(scene: Picture, rng: np.random.Generator, jitter: float = 0.0) -> np.ndarray:
    """uint8 `[64, 64, 3]`. `rng` draws the cells along the edge; `jitter` moves each shape by up to so many pixels."""
    image = blank()
    options = _SLOTS[scene.count]
    for slot in options[int(rng.integers(len(options)))]:
        column, row = cell_of(scene.position, slot)
        offset = rng.uniform(-jitter, jitter, 2) if jitter else (0.0, 0.0)
        x, y = (column + 0.5) * CELL + offset[0], (row + 0.5) * CELL + offset[1]
        draw_shape(image, scene.shape, scene.colour, scene.size, x, y)
    return image
