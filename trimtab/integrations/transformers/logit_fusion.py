"""Dynamic logit fusion for `model.generate`: small experts steer a large model, as strongly as suits each token.

Fan et al. 2024, arXiv 2406.15480. The mathematics is in decoding/fusion.py.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from ...decoding.contrast import widened
from ...decoding.fusion import Active, fuse
from ...errors import InputError
from ...vocabularies import common_width
from .auxiliary_model import AuxiliaryModel, check_device
from .prompt_rows import PromptRows
from .vocabulary import GeneratingModel, check_same_vocabulary

TRACED_STEPS = 65536
"""Steps of rows that `LogitFusion.trace` can look back on."""


@dataclass(frozen=True)
class FusionTrace:
    """What fusion did at each position of `sequences`, float32, nan where it chose no token.

    Attributes:
        alpha: `[rows, length, experts]`.
        divergence: `[rows, length, 2]`, KL(P_a||P) and KL(P||P_a) in nats.
        target: `[rows, length, experts, 2]`, KL(Q_t||Q) and KL(Q||Q_t).
    """

    alpha: Tensor
    divergence: Tensor
    target: Tensor


class LogitFusion(LogitsProcessor):
    """Pass it as `large.generate(**inputs, logits_processor=[LogitFusion(base, [expert])])`.

    Greedy decoding, sampling, beams, `num_return_sequences`, left-padded batches, prompt lookup and assisted
    decoding work, and the same object serves any number of calls: what it keeps is a function of the token ids.

    Args:
        base: the small model that the experts were fine-tuned from; it reads the same tokens as the large one.
        experts: fine-tuned copies of `base`, one or more.
        alpha: `dynamic`, or one number of at least 0 for all experts at every token: 1 is proxy tuning.
        alpha_max: the largest alpha that `dynamic` may choose; the paper's is 2.
        active: with several experts and `dynamic`: `one` lets a single expert act on a token (the paper),
            `all` searches all alphas together.
        attention_mask: `[batch, prompt length]` of the prompts, for decoding loops other than `generate`. Within
            `generate` its own mask is read; outside it, a leading run of the pad token is taken for padding.

    Raises:
        InputError: an argument is out of range, the models lie on several devices, have different vocabularies, or
            cannot be run with rows of different length. What concerns the large model is found in the first step.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        base: PreTrainedModel,
        experts: Sequence[PreTrainedModel],
        alpha: float | Literal["dynamic"] = "dynamic",
        *,
        alpha_max: float = 2.0,
        active: Active = "one",
        attention_mask: Tensor | None = None,
    ) -> None:
        if isinstance(experts, PreTrainedModel) or not len(experts):
            got = type(experts).__name__ if isinstance(experts, PreTrainedModel) else "empty"
            raise InputError(f"experts is {got}: give a list of at least one model")
        if alpha != "dynamic" and not (isinstance(alpha, (int, float)) and 0 <= alpha < math.inf):
            raise InputError(f"alpha is {alpha!r}: give 'dynamic' or a number of at least 0")
        if not 0 < alpha_max < math.inf:
            raise InputError(f"alpha_max is {alpha_max!r}: give a number above 0")
        if active not in get_args(Active):
            raise InputError(f"active is {active!r}: use one of {', '.join(map(repr, get_args(Active)))}")
        for index, expert in enumerate(experts):
            check_device(f"experts[{index}]", expert, base.device, "base is")
            check_same_vocabulary(f"experts[{index}]", expert, "base", base)
        self.alpha, self.alpha_max, self.active = alpha, alpha_max, active
        self._base = AuxiliaryModel(base)
        self._experts = [AuxiliaryModel(expert) for expert in experts]
        self._widths = [("base", self._base.width)]
        self._widths += [(f"experts[{index}]", expert.width) for index, expert in enumerate(self._experts)]
        common_width(self._widths)
        self._rows = PromptRows(base, attention_mask)
        self._large = GeneratingModel("base", base)
        # hash of a text -> figures of the token after it: a function of the ids, like the models' states
        self._steps: dict[int, tuple[list[float], list[float], list[list[float]]]] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, vocab]` float32 log-probabilities of the fused model, -inf for ids that not all models have."""
        check_device("base", self._base.model, scores.device, "the large model's scores are")
        self._large.check(self)
        width = common_width([*self._widths, ("the large model", scores.shape[-1])])
        texts = [[*row.prompt, *row.new] for row in self._rows(self, input_ids)]
        base = self._base.logits(texts)[:, :width]
        experts = torch.stack([expert.logits(texts)[:, :width] for expert in self._experts])
        fixed = None if self.alpha == "dynamic" else float(self.alpha)
        step = fuse(scores[:, :width].float(), base, experts, alpha=fixed, alpha_max=self.alpha_max, active=self.active)
        if not bool(step.converged.all()):
            warnings.warn(
                f"the search for alpha did not come to rest in {int((~step.converged).sum())} of {len(texts)} rows; "
                "the best value found is used",
                stacklevel=2,
            )
        self._remember(texts, step.alpha, step.divergence, step.target)
        return widened(step.log_probs, scores.shape[-1])

    def trace(self, sequences: Tensor, attention_mask: Tensor | None = None) -> FusionTrace:
        """Alphas and divergences along texts that `generate` returned: of the surviving beams and accepted drafts only.

        The last `TRACED_STEPS` steps are known. Where a row ended before the others, the steps on its padding are in
        the trace too.

        Args:
            sequences: `[rows, length]` as returned.
            attention_mask: `[prompts, prompt length]` that `generate` was given; needed if prompts were padded.
        """
        rows, length = sequences.shape
        experts = len(self._experts)
        alpha = torch.full((rows, length, experts), torch.nan)
        divergence = torch.full((rows, length, 2), torch.nan)
        target = torch.full((rows, length, experts, 2), torch.nan)
        masks = None if attention_mask is None else attention_mask.tolist()
        for row, tokens in enumerate(sequences.tolist()):
            mask = [] if masks is None else masks[row * len(masks) // rows]
            skipped = {position for position, seen in enumerate(mask) if not seen}
            text: list[int] = []
            for position, token in enumerate(tokens):
                known = self._steps.get(hash(tuple(text))) if position >= len(mask) else None
                if known is not None:
                    alpha[row, position], divergence[row, position], target[row, position] = map(torch.tensor, known)
                if position not in skipped:
                    text.append(token)
        return FusionTrace(alpha, divergence, target)

    def _remember(self, texts: list[list[int]], *figures: Tensor) -> None:
        with self._lock:
            for text, *step in zip(texts, *(figure.tolist() for figure in figures), strict=True):
                key = hash(tuple(text))
                self._steps.pop(key, None)
                self._steps[key] = (step[0], step[1], step[2])
            while len(self._steps) > TRACED_STEPS:
                del self._steps[next(iter(self._steps))]
