"""STEER for `model.generate`: an expert, away from its base and away from earlier texts.

O'Neill et al. 2023, arXiv 2308.07645. The mathematics is in decoding/contrast.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from ...decoding.contrast import plausible, steer, widened
from ...errors import InputError
from ...vocabularies import common_width
from .auxiliary_model import AuxiliaryModel, check_device
from .prompt_rows import PromptRows, Row
from .vocabulary import GeneratingModel, check_same_vocabulary

Tokens = Sequence[int] | Tensor


class Steer(LogitsProcessor):
    """Pass it as `expert.generate(**inputs, logits_processor=[Steer(base, negatives=[[ids]], expert=expert)])`.

    Scores become `(1 + gamma) log p_E - gamma log p_B - eta log p_E(. | negatives, text so far)`, renormalised.
    `gamma = eta = 0` returns the expert's own scores. Greedy decoding, sampling, beams, `num_return_sequences`,
    left-padded batches, prompt lookup and assisted decoding work, and the same object serves any number of calls.

    Args:
        base: the model that the expert was fine-tuned from; with `gamma=0` it is not run.
        gamma: how far to go away from the base, 0 or more; the paper tries 0 to 1.
        eta: how far to go away from the negatives, 0 or more; the paper tries 0 to 1.
        negatives: for each prompt of the batch one or more negative prompts, each a list or 1-D tensor of token ids;
            the generated tokens follow each of them, and several are averaged in log space. One entry serves all
            prompts.
        plausibility: beta in (0, 1]: only tokens of at least beta times the expert's highest probability stay.
        expert: the model whose `generate` is called, for the negative prompts; needed with `eta > 0`.
        balanced: the coefficient of `log p_E` is `1 + gamma + eta`, so that eta does not flatten the distribution.
        attention_mask: `[batch, prompt length]` of the prompts, for decoding loops other than `generate`.

    Raises:
        InputError: an argument is out of range or missing, the models lie on several devices, have different
            vocabularies, or cannot be run with rows of different length.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        base: PreTrainedModel,
        gamma: float = 0.2,
        eta: float = 0.6,
        negatives: Sequence[Sequence[Tokens]] | None = None,
        plausibility: float | None = None,
        *,
        expert: PreTrainedModel | None = None,
        balanced: bool = False,
        attention_mask: Tensor | None = None,
    ) -> None:
        for name, value in (("gamma", gamma), ("eta", eta)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is {value!r}: give a number of at least 0")
        if plausibility is not None and not 0 < plausibility <= 1:
            raise InputError(f"plausibility is {plausibility!r}: give a number above 0, at most 1, or None")
        self.gamma, self.eta, self.plausibility, self.balanced = gamma, eta, plausibility, balanced
        self._negatives = _checked(negatives) if eta > 0 else []
        if eta > 0:
            if expert is None:
                raise InputError(f"expert is None and eta is {eta}: pass the model whose generate you call, or eta=0")
            check_device("expert", expert, base.device, "base is")
            check_same_vocabulary("expert", expert, "base", base)
        self._base = AuxiliaryModel(base) if gamma > 0 else None
        self._expert = AuxiliaryModel(expert) if expert is not None and eta > 0 else None
        self._widths = [
            (name, model.width) for name, model in (("base", self._base), ("expert", self._expert)) if model is not None
        ]
        if self._widths:
            common_width(self._widths)
        self._rows = PromptRows(base, attention_mask)
        self._generating = GeneratingModel("base", base)

    @property
    def forward_tokens(self) -> dict[str, int]:
        """Tokens fed to the base, and to the expert after the negative prompts, in all calls so far."""
        models = {"base": self._base, "negatives": self._expert}
        return {name: 0 if model is None else model.forwarded for name, model in models.items()}

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, vocab]` scores; with `gamma = eta = 0` and no plausibility those that came in."""
        steered = scores if self._base is None and self._expert is None else self._steered(input_ids, scores)
        if self.plausibility is None:
            return steered
        return steered.masked_fill(~plausible(scores, self.plausibility), -torch.inf)

    def _steered(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for name, model in (("base", self._base), ("expert", self._expert)):
            if model is not None:
                check_device(name, model.model, scores.device, "the scores are")
        self._generating.check(self)
        width = common_width([*self._widths, ("the model that generates", scores.shape[-1])])
        rows = self._rows(self, input_ids, split=self._expert is not None)
        base = negative = None
        if self._base is not None:
            base = self._base.logits([[*row.prompt, *row.new] for row in rows])[:, :width].log_softmax(-1)
        if self._expert is not None:
            negative = self._negative(self._expert, rows, width)
        expert = scores[:, :width].float().log_softmax(-1)
        log_probs = steer(expert, base, negative, gamma=self.gamma, eta=self.eta, balanced=self.balanced)
        return widened(log_probs, scores.shape[-1])

    def _negative(self, expert: AuxiliaryModel, rows: list[Row], width: int) -> Tensor:
        """Mean log-probabilities after a row's negative prompts and its new tokens, `[rows, width]`."""
        prompts = len(self._negatives)
        if len(rows) % prompts:
            raise InputError(f"negatives has {prompts} entries for a batch of {len(rows)}: give one for each prompt")
        owners, texts, shares = [], [], []
        for index, row in enumerate(rows):
            contexts = self._negatives[index * prompts // len(rows)]
            for context in contexts:
                owners.append(index)
                texts.append([*context, *row.new])
                shares.append(1 / len(contexts))
        log_probs = expert.logits(texts)[:, :width].log_softmax(-1)
        share = torch.tensor(shares, device=log_probs.device)[:, None]
        mean = log_probs.new_zeros(len(rows), width)
        return mean.index_add_(0, torch.tensor(owners, device=log_probs.device), share * log_probs)


def _checked(negatives: Sequence[Sequence[Tokens]] | None) -> list[list[list[int]]]:
    if negatives is None or len(negatives) == 0:
        raise InputError(f"negatives is {negatives!r} with eta above 0: give negative prompts for each row, or eta=0")
    found: list[list[list[int]]] = []
    for row, contexts in enumerate(negatives):
        if len(contexts) == 0:
            raise InputError(f"negatives[{row}] is empty with eta above 0: give each row at least one negative prompt")
        found.append([])
        for index, context in enumerate(contexts):
            tokens = context.tolist() if isinstance(context, Tensor) else context
            if not isinstance(tokens, Sequence) or not len(tokens) or not all(isinstance(t, int) for t in tokens):
                raise InputError(
                    f"negatives[{row}][{index}] is {context!r}: give a list or 1-D tensor of at least one token id; "
                    "negatives is nested as row, prompt, token"
                )
            found[-1].append(list(tokens))
    return found
