"""What happens in a video: the one shape is found in every frame and its centre is tracked."""

from collections import Counter

import numpy as np

from anyloop.world.perceive.picture import UNCLEAR, find_blobs

_FAST_FROM = 32.0  # pixels from the first frame to the last, of 64; slow clips move 16, fast ones 48
_STILL = 8.0


def _most(values: list[str]) -> str:
    """The value of at least three quarters of the frames, or UNCLEAR."""
    value, times = Counter(values).most_common(1)[0]
    return value if times * 4 >= len(values) * 3 else UNCLEAR


def perceive_clip(frames: np.ndarray) -> dict[str, str]:
    """size, colour, shape, direction and speed of the shape in uint8 frames `[time, h, w, 3]`."""
    unclear = dict.fromkeys(("size", "colour", "shape", "direction", "speed"), UNCLEAR)
    found = [find_blobs(frame) for frame in frames]
    if len(found) < 2 or any(len(blobs) != 1 for blobs in found):
        return unclear
    track = [blobs[0] for blobs in found]
    xs, ys = np.array([blob.x for blob in track]), np.array([blob.y for blob in track])
    dx, dy = xs[-1] - xs[0], ys[-1] - ys[0]
    along, across = (xs, ys) if abs(dx) >= abs(dy) else (ys, xs)
    travel = along[-1] - along[0]
    steps = np.diff(along) * np.sign(travel)
    direction = speed = UNCLEAR
    straight = np.ptp(across) < _STILL and (steps > -4).all()
    if abs(travel) > _STILL and straight:
        direction = ("left", "right")[int(dx > 0)] if abs(dx) >= abs(dy) else ("up", "down")[int(dy > 0)]
        speed = "fast" if abs(travel) >= _FAST_FROM else "slow"
    return {
        "size": _most([blob.size for blob in track]),
        "colour": _most([blob.colour for blob in track]),
        "shape": _most([blob.shape for blob in track]),
        "direction": direction,
        "speed": speed,
    }
