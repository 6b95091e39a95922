"""Without a CUDA device Triton's kernels run in its interpreter, which must be known before anybody imports triton."""

import os
from importlib.util import find_spec

import torch

if not torch.cuda.is_available() and find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.support.gpu import IS_INTERPRETED, mend_interpreter  # which reads the environment

if IS_INTERPRETED:
    mend_interpreter()
