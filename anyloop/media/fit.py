"""Between files as people send and see them and the arrays that a codec takes and gives.

In: any image, sound or video is brought to the codec's shape. Out: pixels four times larger (nearest), so that a
picture of 64 pixels can be looked at; sounds as they are.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from anyloop.media.formats import (
    LIMITS,
    MIME_TYPES,
    read_audio,
    read_image,
    read_video,
    write_audio,
    write_image,
    write_video,
)
from anyloop.media.limits import MediaLimits
from anyloop.modality import Modality

ENLARGE = 4


def fit_for_codec(
    data: bytes, modality: Modality, shape: Sequence[int], rate: float = 0.0, limits: MediaLimits = LIMITS
) -> np.ndarray:
    """A file as the codec's float32 array of `shape`; `rate` is the codec's samples per second (audio).

    Raises MediaError when the file is broken, of another modality, or over a limit.
    """
    if modality is Modality.IMAGE:
        return fit_image(read_image(data, limits), shape)
    if modality is Modality.AUDIO:
        return fit_audio(*read_audio(data, limits), shape[0], int(rate))
    if modality is Modality.VIDEO:
        return fit_video(read_video(data, limits, frames=shape[0])[0], shape)
    raise ValueError(f"{modality} has no codec")


def fit_image(pixels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """uint8 `[height, width, 3]` to floats in [0, 1], by the mean over each target pixel's area."""
    height, width = shape[:2]
    scaled = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(scaled, dtype=np.float32) / 255.0


def fit_video(frames: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """uint8 `[frames, height, width, 3]` to the codec's frames, height and width."""
    chosen = np.linspace(0, len(frames) - 1, shape[0]).round().astype(int)
    return np.stack([fit_image(frames[index], shape[1:]) for index in chosen])


def fit_audio(samples: np.ndarray, rate: int, length: int, codec_rate: int) -> np.ndarray:
    """float32 `[time]` at `rate` to `length` samples at `codec_rate`: resampled, then cut or filled with silence."""
    if rate != codec_rate:
        # A tenth of a second past the cut keeps its edge clean.
        needed = (length + codec_rate // 10) * rate // codec_rate
        samples = _resample(samples[:needed], rate, codec_rate)
    fitted = np.zeros(length, dtype=np.float32)
    kept = min(length, len(samples))
    fitted[:kept] = samples[:kept]
    return fitted


def _resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Band-limited resampling by the Fourier transform; exact for the tones and short sounds that the codec holds."""
    length = max(1, round(len(samples) * target / rate))
    spectrum = np.fft.rfft(samples)
    bins = length // 2 + 1
    resized = np.zeros(bins, dtype=complex)
    kept = min(bins, len(spectrum))
    resized[:kept] = spectrum[:kept]
    return np.asarray(np.fft.irfft(resized, length) * (length / len(samples)), dtype=np.float32)


def render(array: np.ndarray, modality: Modality, rate: float = 0.0) -> tuple[bytes, str]:
    """A codec's float array as a file for people, and its MIME type; `rate` is samples or frames per second."""
    if modality is Modality.AUDIO:
        return write_audio(array, int(rate)), MIME_TYPES[modality]
    pixels = np.round(np.clip(array, 0.0, 1.0) * 255).astype(np.uint8)
    large = pixels.repeat(ENLARGE, axis=-3).repeat(ENLARGE, axis=-2)
    if modality is Modality.IMAGE:
        return write_image(large), MIME_TYPES[modality]
    if modality is Modality.VIDEO:
        return write_video(large, rate), MIME_TYPES[modality]
    raise ValueError(f"{modality} has no codec")
