"""Media for tests that only need some."""

import numpy as np

DOT = np.zeros((8, 8, 3), dtype=np.uint8)
