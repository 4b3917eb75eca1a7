"""Several models read together as one: a target, and members that say how its distribution is changed.

All of them run in one forward pass on the same tokens and positions, each with attention layers, and so keys and
values, of its own; vLLM's block tables, chunked prefill, prefix cache and preemption hold for all alike. Their hidden
states are returned side by side with what the request asks for (strengths.py), and are taken apart again where logits
are asked for. STEER's negative prompts, which are other tokens, are passes of their own (negatives/). Tested with vLLM
0.31 and 0.32, runners V1 and V2.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import has_inner_state, is_hybrid, supports_mrope, supports_multimodal
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix

from ...errors import InputError
from .alpha_metrics import AlphaMetrics
from .composed_scores import Negative, composed_scores
from .composite_config import composition_of
from .member_config import member_config
from .negatives.branch import NegativeBranch, NegativePool
from .per_request import ROWS, composite_state
from .strengths import as_columns, columns, default_push, from_columns


class TrimtabCompositeForCausalLM(nn.Module):
    """What vLLM builds for a directory of `trimtab compose`.

    Attributes:
        target: the model whose distribution is changed; its layers keep the names they have without us, so that its
            quantisation and whatever else goes by names is as ever.
        secondary_weights: where vLLM's loader finds the members' weights.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        self.composition = composition_of(model_config)
        self._vllm_config = vllm_config
        self._default = default_push(self.composition)
        self._branch: NegativeBranch | None = None
        with set_model_tag("trimtab_target"):
            self.target = init_vllm_registered_model(
                vllm_config,
                prefix=prefix,
                hf_config=model_config.hf_config,
                architectures=list(self.composition.architectures),
            )
        _check("the target", self.target)
        self._widths = [model_config.get_hidden_size()]
        self._quantised = {"target"} if vllm_config.quant_config is not None else set()
        self.secondary_weights = []
        for name in self.composition.members:
            path = str(Path(model_config.model) / name)
            config = member_config(vllm_config, path, maybe_prefix(prefix, name))
            with set_model_tag(name):
                member = init_vllm_registered_model(config, prefix=maybe_prefix(prefix, name))
            _check(name, member)
            if config.quant_config is not None:
                self._quantised.add(name)
            setattr(self, name, member)
            self._widths.append(config.model_config.get_hidden_size())
            self.secondary_weights.append(DefaultModelLoader.Source(path, None, prefix=f"{name}."))
        self._widths.append(columns(model_config.dtype, self._default))
        self._chosen = None
        # every tensor-parallel rank may search: one of them speaks
        if self.composition.method == "fusion" and vllm_config.parallel_config.rank == 0:
            experts = self.composition.members[1:]
            self._chosen = AlphaMetrics(str(model_config.served_model_name), experts).add

    @property
    def _parts(self) -> list[Any]:
        return [self.target, *(getattr(self, name) for name in self.composition.members)]

    def get_model_state_cls(self) -> type:
        """Of Model Runner V2: the target's, which also hands each token's push to `forward`."""
        return composite_state(self._vllm_config, self.target, self._default, self._new_branch)

    def _new_branch(self, pool: NegativePool) -> NegativeBranch:
        assert pool.blocks is not None
        device = next(self.target.parameters()).device
        self._branch = NegativeBranch(self._vllm_config, self.target, pool.blocks, device)
        return self._branch

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """`[tokens]` ids to the target's embeddings."""
        return self.target.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        pushes: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        """`[tokens, all widths]`: the hidden states of target and members, and what each token's request asks for.

        Args:
            input_ids: `[tokens]`.
            positions: `[tokens]`.
            intermediate_tensors: none, since composites are not split over pipeline stages.
            inputs_embeds: none, since members have embeddings of their own.
            pushes: `[tokens, numbers]` float32 by V2; on V1 they are found here.
            extra: of the runner, not read.
        """
        hidden = [part(input_ids, positions, None, None) for part in self._parts]
        if pushes is None:
            rows = getattr(self._vllm_config.model_config, ROWS, None)
            if rows is None:  # before V1 has its processors
                pushes = torch.tensor(self._default, device=input_ids.device).repeat(len(input_ids), 1)
            else:
                pushes = rows.pushes(input_ids, positions, self._new_branch)
        return torch.cat([*hidden, as_columns(pushes, hidden[0].dtype)], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """`[rows, vocab]` float32 of the composed distribution; None where the target gives None (tensor parallel)."""
        *hidden, found = hidden_states.split(self._widths, dim=-1)
        pushes = from_columns(found)
        logits = [part.compute_logits(state.contiguous()) for part, state in zip(self._parts, hidden, strict=True)]
        width = 0 if logits[0] is None else min(part.shape[-1] for part in logits)
        negative = self._negative(pushes, width)  # every tensor-parallel rank takes part
        if logits[0] is None:
            return None
        return composed_scores(self.composition, logits[0], logits[1:], pushes, negative, self._chosen)

    def _negative(self, pushes: Tensor, width: int) -> Negative | None:
        places = pushes[:, 2] if self._branch is not None else pushes[:0, 0]
        rows = places[places >= 0].long()
        return self._branch.negative(rows, width) if self._branch is not None and len(rows) else None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The target's weights come under their own names, those of a member under its name and a dot."""
        loaded: set[str] = set()
        for name, group in groupby(weights, key=lambda item: self._owner(item[0])):
            cut = 0 if name == "target" else len(name) + 1
            part = getattr(self, name)
            found = part.load_weights((key[cut:], weight) for key, weight in group)
            if found is None or name in self._quantised:
                # vLLM does not check these either: quantised layers have parameters that no file holds
                found = {key for key, _ in part.named_parameters()}
            loaded |= {f"{name}.{key}" for key in found}
        return loaded

    def _owner(self, key: str) -> str:
        head = key.split(".", 1)[0]
        return head if head in self.composition.members else "target"


def _check(name: str, model: nn.Module) -> None:
    """Only text models whose whole state is keys and values can share one engine's bookkeeping."""
    kinds = {
        "several kinds of state": is_hybrid,
        "a state beside keys and values": has_inner_state,
        "input other than text": supports_multimodal,
        "positions of several axes": supports_mrope,
    }
    for what, test in kinds.items():
        if test(model):
            raise InputError(f"{name} is a {type(model).__name__}, which has {what}: compose causal LMs of text")
