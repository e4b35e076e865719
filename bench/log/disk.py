"""The floor under both: one file, one write of an event's size, one fsync."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.log.contenders import EVENT_BYTES


def syncs_per_second(folder: Path, seconds: float) -> float:
    path = folder / "floor"
    data = os.urandom(EVENT_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            os.write(descriptor, data)
            os.fsync(descriptor)
            count += 1
        return count / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()
