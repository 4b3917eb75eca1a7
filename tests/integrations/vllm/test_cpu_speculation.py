"""Each verified row of vLLM's CPU build gets the sampling parameters of its own request."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("vllm")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rejection_sampler() -> Any:
    """vLLM's module, mended."""
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    from trimtab.integrations.vllm.cpu_speculation import mend

    if not current_platform.is_cpu():
        pytest.skip("not the CPU build")
    current_platform.register_triton_kernel_overrides()  # as its worker does
    mend()
    return rejection_sampler


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_values_of_requests_reach_their_rows(rejection_sampler: Any, dtype: torch.dtype) -> None:
    values, counts = [3, 0, 7, 5], [2, 3, 0, 1]
    found = rejection_sampler.expand_batch_to_tokens(
        torch.tensor(values, dtype=dtype), torch.tensor(counts, dtype=torch.int32).cumsum(0), 6, 0, 1
    )
    assert found.dtype == dtype
    assert found.tolist() == [3, 3, 1, 1, 1, 5]


def test_top_k_of_a_step_without_drafts(rejection_sampler: Any) -> None:
    none = torch.empty(0, 9)
    assert rejection_sampler.apply_top_k_top_p(none, torch.empty(0, dtype=torch.int32), None).shape == (0, 9)
    found = rejection_sampler.apply_top_k_top_p(torch.arange(9.0)[None], torch.tensor([2], dtype=torch.int32), None)
    assert found.isfinite().tolist() == [[False] * 7 + [True] * 2]
