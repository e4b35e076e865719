"""Sounds: three notes of a quarter second each, mono, 8 kHz.

Every pitch has a whole number of cycles in a codec frame of 512 samples, so a steady note is one repeated frame.
"""

import numpy as np

from anyloop.world.scenes import Sound

RATE = 8000  # samples per second
NOTE = 2048  # samples per note
LENGTH = 3 * NOTE
FREQUENCY = {"low": 250.0, "middle": 500.0, "high": 1000.0}  # Hz
PEAK = {"quiet": 0.12, "loud": 0.7}
# Amplitudes of the harmonics 1, 2, 3
HARMONICS = {"pure": (1.0, 0.0, 0.0), "hollow": (1.0, 0.0, 0.55), "bright": (1.0, 0.6, 0.4)}
_ATTACK, _RELEASE = 64, 160  # samples


def render_sound(scene: Sound, rng: np.random.Generator | None = None, jitter: float = 0.0) -> np.ndarray:
    """float32 `[6144]` in [-1, 1]. `jitter` detunes each note by up to that share of its frequency."""
    time = np.arange(NOTE) / RATE
    envelope = np.ones(NOTE)
    envelope[:_ATTACK] = np.linspace(0, 1, _ATTACK)
    envelope[-_RELEASE:] = np.linspace(1, 0, _RELEASE)
    notes = []
    for pitch in (scene.first, scene.second, scene.third):
        frequency = FREQUENCY[pitch] * (1 + (rng.uniform(-jitter, jitter) if rng is not None and jitter else 0.0))
        partials = enumerate(HARMONICS[scene.timbre], start=1)
        wave = np.asarray(sum(a * np.sin(2 * np.pi * frequency * k * time) for k, a in partials))
        notes.append(wave / np.abs(wave).max() * PEAK[scene.loudness] * envelope)
    return np.concatenate(notes).astype(np.float32)
