"""A fence around libraries that seed or draw from global generators: inside it they may, outside
nothing has changed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Put back the global generators' states at the end; seed them before when asked."""
    import torch

    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
