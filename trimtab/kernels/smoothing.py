"""Moving the outliers of activations into the weights that read them (SmoothQuant).

    s[j] = max|x[:, j]| ** alpha / max|w[:, j]| ** (1 - alpha)        (Xiao et al. 2022, arXiv 2211.10438, equation 4)

Activations are divided by s and the weights that read them multiplied: the same function, easier to round. Inputs of q,
k, v, gate and up take the division from the norm before them; that of down from up, whose output is a factor of it. The
input of o stays: under grouped-query attention nothing before it could take one factor a channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

SMOOTHED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""`config.model_type` of the models whose norms are read by the linears below and by nothing else."""

Prompts = Sequence[Sequence[int]] | Tensor
"""Token ids: a list for each prompt, or `[prompts, length]` without padding."""

_LEAST = 1e-5


@dataclass(frozen=True, slots=True)
class _Site:
    """Linears that read one input, and what that input is scaled by: a norm's gain or a linear's output channels."""

    source: Any  # a norm, or the linear whose output is a factor of the input
    readers: tuple[nn.Linear, ...]


@torch.no_grad()
def smooth_(model: nn.Module, prompts: Prompts, alpha: float = 0.5) -> None:
    """Smooth the activations of a model in place; in exact arithmetic its output stays the same.

    Args:
        model: a transformers causal LM of a type in `SMOOTHED`, with its weights in full precision.
        prompts: token ids that the activations are watched on.
        alpha: 0 leaves the weights even, 1 the activations.

    Raises:
        InputError: a model of another type, or with layers quantised already; prompts that are empty or hold ids that
            the model lacks; alpha out of range.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha!r}: give a number from 0 to 1")
    batches = _checked(model, prompts)
    sites = list(_sites(model))
    # before anything is written, so that a refusal leaves the model as it was
    offsets = [_offset(site.source) for site in sites]
    largest = _magnitudes(model, sites, batches)
    for site, offset, seen in zip(sites, offsets, largest, strict=True):
        read = torch.stack([reader.weight.abs().amax(0) for reader in site.readers]).amax(0)
        scale = seen.clamp(min=_LEAST) ** alpha / read.clamp(min=_LEAST) ** (1 - alpha)
        scale = scale.clamp(min=_LEAST)
        if isinstance(site.source, nn.Linear):
            site.source.weight.div_(scale[:, None])
            if site.source.bias is not None:
                site.source.bias.div_(scale)
        else:
            site.source.weight.copy_((site.source.weight + offset) / scale - offset)
        for reader in site.readers:
            reader.weight.mul_(scale)


def _sites(model: nn.Module) -> Iterator[_Site]:
    for block in model.modules():
        attention, mlp = getattr(block, "self_attn", None), getattr(block, "mlp", None)
        if attention is None or mlp is None:
            continue
        before_mlp = getattr(block, "pre_feedforward_layernorm", None) or block.post_attention_layernorm
        yield _site(block.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        yield _site(before_mlp, mlp.gate_proj, mlp.up_proj)
        yield _site(mlp.up_proj, mlp.down_proj)


def _site(source: Any, *readers: Any) -> _Site:
    if any(type(reader) is not nn.Linear for reader in readers):
        raise InputError("model has layers in low bits already: calibrate the model in full precision")
    return _Site(source, readers)


def _offset(source: nn.Module) -> int:
    """What a norm adds to its weight before it multiplies: 1 in Gemma's, else 0."""
    if isinstance(source, nn.Linear):
        return 0
    weight: Any = source.weight
    gain = source(torch.ones_like(weight)[None])[0]  # the root mean square of ones is 1
    return int((gain - weight - 1).abs().sum() < (gain - weight).abs().sum())


def _magnitudes(model: nn.Module, sites: list[_Site], batches: list[Tensor]) -> list[Tensor]:
    """Largest absolute input in each channel of the readers of each site."""
    largest = [site.readers[0].weight.new_zeros(site.readers[0].in_features) for site in sites]

    def watch(place: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].abs().flatten(0, -2).amax(0)
            largest[place] = torch.maximum(largest[place], seen)

        return hook

    handles = [site.readers[0].register_forward_pre_hook(watch(place)) for place, site in enumerate(sites)]
    base: Any = model.base_model  # the head's logits are of no use here
    try:
        for batch in batches:
            base(input_ids=batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return largest


def _checked(model: nn.Module, prompts: Prompts) -> list[Tensor]:
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in SMOOTHED:
        raise InputError(
            f"model {type(model).__name__} is of type {kind!r}, smoothing knows {', '.join(SMOOTHED)}: "
            "quantise it without calibration"
        )
    if len(prompts) == 0:
        raise InputError("calibration is empty: give the token ids of some prompts, or leave it out")
    if isinstance(prompts[0], str):
        raise InputError("calibration holds text: give token ids, tokenizer(texts).input_ids")
    device = next(model.parameters()).device
    batches = [torch.as_tensor(ids, device=device).reshape(1, -1) for ids in prompts]
    vocab = config.vocab_size
    for place, batch in enumerate(batches):
        if not batch.numel() or batch.is_floating_point() or batch.min() < 0 or batch.max() >= vocab:
            raise InputError(f"calibration[{place}] has to be token ids from 0 to {vocab - 1}, at least one")
    return batches
