"""Each verified row of vLLM's CPU build gets the sampling parameters of its own request."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_values_of_requests_reach_their_rows(dtype: torch.dtype) -> None:
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    from trimtab.integrations.vllm.cpu_speculation import mend

    if not current_platform.is_cpu():
        pytest.skip("not the CPU build")
    current_platform.register_triton_kernel_overrides()  # as its worker does
    mend()
    values, counts = [3, 0, 7, 5], [2, 3, 0, 1]
    found = rejection_sampler.expand_batch_to_tokens(
        torch.tensor(values, dtype=dtype), torch.tensor(counts, dtype=torch.int32).cumsum(0), 6, 0, 1
    )
    assert found.dtype == dtype
    assert found.tolist() == [3, 3, 1, 1, 1, 5]
