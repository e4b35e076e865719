"""What is in a picture: colour mask, connected components, box and fill of each."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from anyloop.world.render.picture import RGB, SIDE

UNCLEAR = "unclear"
_MIN_AREA = 12  # pixels; less is a speck of codec noise
_LARGE_FROM = 11.0  # pixels; small shapes are 8 wide, large ones 14
_PALE = 12.0  # saturation of the ground and its noise, grey levels
_NAMES = tuple(RGB)
_PALETTE = np.array([RGB[name] for name in _NAMES], dtype=float)


@dataclass(frozen=True)
class Blob:
    """One connected shape: centre, width and height in pixels, and the share of width x height that it covers."""

    x: float
    y: float
    width: float
    height: float
    fill: float
    colour: str

    @property
    def shape(self) -> str:
        """A square covers its box, a circle pi/4 of it, a triangle half."""
        if self.fill > 0.92:
            return "square"
        return "circle" if self.fill > 0.725 else "triangle"

    @property
    def size(self) -> str:
        return "large" if max(self.width, self.height) >= _LARGE_FROM else "small"


def fit(image: np.ndarray) -> np.ndarray:
    """Any uint8 `[h, w, 3]` picture to float `[64, 64, 3]` by area averaging (nearest where it does not divide)."""
    height, width = image.shape[:2]
    if height % SIDE == 0 and width % SIDE == 0:
        return image.reshape(SIDE, height // SIDE, SIDE, width // SIDE, 3).mean(axis=(1, 3))
    rows, columns = (np.arange(SIDE) + 0.5) * height / SIDE, (np.arange(SIDE) + 0.5) * width / SIDE
    return image[rows.astype(int)][:, columns.astype(int)].astype(float)


def find_blobs(image: np.ndarray) -> list[Blob]:
    """The coloured shapes of a uint8 picture. Edge pixels count by how much colour they hold."""
    pixels = fit(image)
    saturation = pixels.max(-1) - pixels.min(-1)
    blobs = []
    for members in _components(saturation > 75):
        if len(members) < _MIN_AREA:
            continue
        ys, xs = np.array(members).T
        inner = saturation[ys, xs] >= np.median(saturation[ys, xs])
        mean = pixels[ys[inner], xs[inner]].mean(0)
        colour = _NAMES[int(((_PALETTE - mean) ** 2).sum(1).argmin())]
        window = np.s_[max(ys.min() - 1, 0) : ys.max() + 2, max(xs.min() - 1, 0) : xs.max() + 2]
        full = float(np.ptp(mean))
        cover = ((saturation[window] - _PALE) / (full - _PALE)).clip(0, 1)
        width, height = cover.sum(1).max(), cover.sum(0).max()
        blobs.append(Blob(xs.mean() + 0.5, ys.mean() + 0.5, width, height, cover.sum() / (width * height), colour))
    return blobs


def _components(mask: np.ndarray) -> Iterable[list[tuple[int, int]]]:
    seen = ~mask
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        seen[start] = True
        stack, members = [(int(start[0]), int(start[1]))], []
        while stack:
            y, x = stack.pop()
            members.append((y, x))
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= near[0] < SIDE and 0 <= near[1] < SIDE and not seen[near]:
                    seen[near] = True
                    stack.append(near)
        yield members


def agreed(values: Iterable[str]) -> str:
    """The one value that all share, or UNCLEAR."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else UNCLEAR


def perceive_picture(image: np.ndarray) -> dict[str, str]:
    """count, size, colour, shape and position of the shapes in a uint8 `[h, w, 3]` picture."""
    blobs = find_blobs(image)
    if not 1 <= len(blobs) <= 3:
        return dict.fromkeys(("count", "size", "colour", "shape", "position"), UNCLEAR)
    x = np.mean([blob.x for blob in blobs]) - SIDE / 2
    y = np.mean([blob.y for blob in blobs]) - SIDE / 2
    position = UNCLEAR
    if max(abs(x), abs(y)) > SIDE / 4 and abs(abs(x) - abs(y)) > 4:
        position = ("left" if x < 0 else "right") if abs(x) > abs(y) else ("top" if y < 0 else "bottom")
    return {
        "count": ("one", "two", "three")[len(blobs) - 1],
        "size": agreed(blob.size for blob in blobs),
        "colour": agreed(blob.colour for blob in blobs),
        "shape": agreed(blob.shape for blob in blobs),
        "position": position,
    }
