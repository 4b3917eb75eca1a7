"""These tests run kernels in Triton's interpreter, which has to be chosen before Triton is imported.

tests/kernels/test_interpreted.py runs them in a process of their own; otherwise they are not collected.
"""

from __future__ import annotations

import os

import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
torch.set_num_threads(1)
