"""Where the tests of this folder run: a CUDA device, or (``SELM_TEST_DEVICE=cpu``) the CPU, to see
that they run before there is a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("SELM_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
NEEDS_DEVICE = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no CUDA device"),
]
