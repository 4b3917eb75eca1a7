"""Reading negatives with vLLM's own model and attention kernels, without an engine: tiny random models, against
transformers in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from torch import Tensor
from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig, PreTrainedModel

from tests.integrations.vllm.negatives.loading import loaded_by_vllm
from trimtab.integrations.vllm.negatives.sequences import NegativeGroup, NegativeSequence

VOCABULARY = 300
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256, "tie_word_embeddings": True,
    "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, PretrainedConfig]] = {
    "llama": ("LlamaForCausalLM", LlamaConfig(**SHAPE, num_hidden_layers=3)),
    "sliding": (
        "Gemma3ForCausalLM",
        Gemma3TextConfig(
            **SHAPE, num_hidden_layers=4, sliding_window=16, query_pre_attn_scalar=32,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
    ),
}  # fmt: skip


class Loaded:
    """A model in transformers and in vLLM."""

    def __init__(self, plain: PreTrainedModel, config: Any, target: Any) -> None:
        self.plain, self.config, self.target = plain, config, target

    @torch.no_grad()
    def log_probs(self, text: list[int]) -> Tensor:
        return self.plain(torch.tensor([text]), use_cache=False).logits[0, -1].log_softmax(-1)


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    import transformers

    architecture, shape = CONFIGS[request.param]
    torch.manual_seed(0)
    plain = getattr(transformers, architecture)(shape).eval()
    directory: Path = tmp_path_factory.mktemp(request.param)
    plain.save_pretrained(directory)
    with loaded_by_vllm(directory, skip_tokenizer_init=True) as (config, target):
        yield Loaded(plain, config, target)


def test_every_step_is_the_mean_over_the_negatives(loaded: Loaded) -> None:
    """Groups come and go over 40 steps, their prompts longer than a pass; memory is short in the second half."""
    from trimtab.integrations.vllm.negatives.branch import NegativeBranch
    from trimtab.integrations.vllm.negatives.sequences import BlockPool

    generator = torch.Generator().manual_seed(1)

    def random_ids(length: int) -> list[int]:
        return torch.randint(VOCABULARY, (length,), generator=generator).tolist()

    lengths = [(5,), (40, 1, 17), (33, 64), (3, 3), (20,)]
    groups = [
        NegativeGroup(0.1 * (row + 1), row % 2 == 0, [NegativeSequence(random_ids(n)) for n in each])
        for row, each in enumerate(lengths)
    ]
    new = [random_ids(40) for _ in groups]
    since = [0, 0, 3, 7, 20]
    own = {name: layer.kv_cache for name, layer in loaded.config.compilation_config.static_forward_context.items()}
    with torch.inference_mode():
        for tokens in (512, 130):  # all of them hold 349 at the end, the largest one 177
            for group in groups:
                for sequence in group.sequences:
                    sequence.blocks, sequence.kept = [], 0
            pool = BlockPool(tokens + 60, 3)
            branch = NegativeBranch(loaded.config, loaded.target, pool, torch.device("cpu"))
            for step in range(0, 40, 1 if tokens == 512 else 4):
                here = [row for row in range(5) if step >= since[row] and not (row == 0 and step > 30)]
                wanted = [(groups[row], step - since[row]) for row in here]
                if step == 31:
                    pool.drop(groups[0])
                asked: list[tuple[int, int]] = []

                def new_tokens(owners: list[int], places: list[int], here=here, asked=asked) -> Tensor:
                    asked += zip(owners, places, strict=True)
                    return torch.tensor([new[here[o]][p] for o, p in zip(owners, places, strict=True)])

                branch.read(wanted, new_tokens)
                order = torch.tensor([*reversed(range(len(here))), 0])
                found = branch.negative(order, VOCABULARY)
                torch.testing.assert_close(found.eta, torch.tensor([groups[here[i]].eta for i in order.tolist()]))
                assert found.balanced.tolist() == [groups[here[i]].balanced for i in order.tolist()]
                for index, place in enumerate(order.tolist()):
                    group, after = wanted[place]
                    texts = [sequence.prompt + new[here[place]][:after] for sequence in group.sequences]
                    mean = torch.stack([loaded.log_probs(text) for text in texts]).mean(0)
                    torch.testing.assert_close(found.log_probs[index], mean, atol=2e-4, rtol=0)
                if tokens == 512 and step > since[4]:
                    # one new token for each sequence, and no more
                    assert len(asked) == sum(len(group.sequences) for group, _ in wanted)
    # vLLM's own keys and values are where they were
    for name, layer in loaded.config.compilation_config.static_forward_context.items():
        assert layer.kv_cache is own[name]
