"""What is heard: the pitch of each third by FFT, loudness by RMS, timbre by the second and third harmonics."""

import numpy as np

from anyloop.world.perceive.picture import UNCLEAR, agreed
from anyloop.world.render.sound import FREQUENCY

_TOLERANCE = 0.08  # share of the frequency
_LOUD_FROM = 0.17  # RMS; quiet notes have about 0.08, loud ones 0.4
_SILENT = 0.01


def _fundamental(spectrum: np.ndarray, frequencies: np.ndarray) -> float:
    """The strongest frequency in Hz; every timbre of the world is strongest at its fundamental."""
    return float(frequencies[int(spectrum.argmax())])


def _band(spectrum: np.ndarray, frequencies: np.ndarray, centre: float) -> float:
    near = np.abs(frequencies - centre) <= centre * 0.04 + 8
    return float(spectrum[near].max(initial=0.0))


def _timbre(second: float, third: float) -> str:
    """From the amplitudes of harmonics 2 and 3 relative to the first."""
    if second > 0.3:
        return "bright" if third > 0.15 else UNCLEAR
    if second < 0.18:
        return "hollow" if third > 0.3 else "pure" if third < 0.18 else UNCLEAR
    return UNCLEAR


def perceive_sound(samples: np.ndarray, rate: float = 8000.0) -> dict[str, str]:
    """first, second, third (pitches), loudness and timbre of mono float samples `[time]` at `rate` Hz."""
    thirds = [part[len(part) // 8 : -len(part) // 6] for part in np.array_split(np.asarray(samples, dtype=float), 3)]
    pitches, timbres, levels = [], [], []
    for part in thirds:
        level = float(np.sqrt(np.mean(part**2))) if len(part) > 16 else 0.0
        levels.append(level)
        if level < _SILENT:
            pitches.append(UNCLEAR)
            timbres.append(UNCLEAR)
            continue
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        frequencies = np.fft.rfftfreq(len(part), 1 / rate)
        strongest = _fundamental(spectrum, frequencies)
        near = [name for name, hz in FREQUENCY.items() if abs(strongest / hz - 1) < _TOLERANCE]
        pitches.append(near[0] if near else UNCLEAR)
        base = _band(spectrum, frequencies, strongest)
        timbres.append(_timbre(*(_band(spectrum, frequencies, strongest * k) / base for k in (2, 3))))
    loudness = agreed("loud" if level > _LOUD_FROM else "quiet" for level in levels)
    if min(levels) < _SILENT:
        loudness = UNCLEAR
    return {
        "first": pitches[0],
        "second": pitches[1],
        "third": pitches[2],
        "loudness": loudness,
        "timbre": agreed(timbres),
    }
