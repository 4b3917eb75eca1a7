"""`--model trimtab` for lm-evaluation-harness: its tasks, answered by any set-up of `trimtab ab`.

The harness finds models in a table of its own and reads no entry points, so something has to import this module first:
`trimtab lm-eval`, or a script before it calls `lm_eval.simple_evaluate`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..errors import InputError
from .transformers.loading import Loaded, load
from .transformers.low_bit import LowBitModel
from .transformers.padding import pad_left
from .transformers.quantized_verification import QuantizedVerification
from .transformers.runner import Runner, context_length
from .transformers.state import SequenceState

LOOK_BACK = 2
"""Tokens beyond those of a stop text that are read for it: it may be written in other tokens than its own."""

Scored = tuple[float, bool]
Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("trimtab")
class TrimtabLM(HFLM):
    """A model of the harness that decodes with one of trimtab's methods.

    `generate_until` requests go through the method. Log-likelihoods are those of the distributions that the method
    chooses tokens from, along the given text: the low-bit model's for `quantized`, the fused or steered ones for
    `fusion` and `steer`, those of whichever model's turn it is for `ead`, and the model's own for `none` and for what
    writes the model's own texts.

    Args:
        pretrained: as for `trimtab.load`.
        method: a set-up as `trimtab ab` reads it, `quantized:bits=8,mode=lossless`. The harness splits its arguments
            at commas, so what follows one arrives in `options`.
        batch_size: requests decoded together, or `auto`.
        max_batch_size: the most that `auto` tries.
        device: as for `trimtab.load`; without a GPU `cuda` is `cpu`, as for the harness's `hf`.
        dtype: as for `trimtab.load`.
        max_length: context length in tokens; the model's own by default.
        add_bos_token: as for the harness's `hf`.
        options: more options of the method.

    Raises:
        InputError: the set-up cannot be read, or a model cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str,
        method: str = "none",
        *,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        device: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        **options: Any,
    ) -> None:
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # the command's --device is cuda:0 by default, and its hf falls back as well
        model, tokenizer, self.setup, given = _prepared(pretrained, method, options, device, dtype)
        self._generate_options = given
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_length=max_length,
            add_bos_token=add_bos_token,
        )
        self.pretrained = pretrained  # the name: the harness writes it into its results
        self._low_bit, self._along_the_text = self._scored_by()

    def get_model_info(self) -> dict[str, Any]:
        """The harness's own, and the set-up."""
        return {**super().get_model_info(), "trimtab_setup": self.setup}

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        # As the harness's hf model: no temperature, or 0, is greedy.
        if not options.get("temperature") and not options.get("do_sample"):
            options |= {"do_sample": False}
            options.pop("temperature", None)
        stops = StoppingCriteriaList([StopTexts(self.tokenizer, stop, context)])
        found: Tensor = self.model.generate(
            input_ids=context,
            max_length=max_length,
            stopping_criteria=stops,
            pad_token_id=self.tokenizer.pad_token_id,
            **options,
            **self._generate_options,
        )
        return found

    # -- log-likelihoods -------------------------------------------------------------------------------------------

    def _scored_by(self) -> tuple[LowBitModel | None, bool]:
        """The low-bit model that chooses every token, if one does; whether the method has to be run along the text."""
        method = self._generate_options.get("custom_generate")
        if isinstance(method, QuantizedVerification):
            return method.prepare(self.model) if method.mode == "quantized" else None, False
        return None, bool(self._generate_options)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        if self._low_bit is None:
            logits: Tensor = super()._model_call(inps, attn_mask, labels)
            return logits
        rows, width = inps.shape
        runner = Runner(self._low_bit.forward, SequenceState(rows, width), inps.device, context_length(self.model))
        return runner.extend(inps, [width] * rows)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Scored]:
        if not self._along_the_text:
            plain: list[Scored] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return plain
        size = override_bs or (self.max_batch_size if self.batch_size == "auto" else self.batch_size)
        # of one length where possible: the longest continuation of a batch says how many steps it takes
        order = sorted(range(len(requests)), key=lambda index: (len(requests[index][2]), len(requests[index][1])))
        found: dict[int, Scored] = {}
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Along the texts") as bar:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                found |= zip(batch, self._along([requests[index] for index in batch]), strict=True)
                bar.update(len(batch))
        for index, (texts, _, _) in enumerate(requests):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, found[index])
        return [found[index] for index in range(len(requests))]

    def _along(self, requests: Sequence[Request]) -> list[Scored]:
        """One `generate` call that is made to write the continuations, and what it gave each of their tokens."""
        wanted = [continuation[-self.max_length :] for _, _, continuation in requests]
        longest = max(map(len, wanted))
        # the last token is never fed
        contexts = [
            (context + text)[-(self.max_length + 1) : -len(text)]
            for (_, context, _), text in zip(requests, wanted, strict=True)
        ]
        ids = pad_left(contexts, self.tokenizer.pad_token_id).to(self.device)
        mask = pad_left([[1] * len(context) for context in contexts]).to(self.device)
        forced = Forced(wanted, ids.shape[1], self.tokenizer.pad_token_id)
        given = dict(self._generate_options)
        processors = LogitsProcessorList([*given.pop("logits_processor", []), forced])
        self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=processors,
            max_new_tokens=longest,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=self.tokenizer.pad_token_id,
            # a text may go on after an end token: none ends it
            eos_token_id=len(self.model.get_output_embeddings().weight),
            **given,
        )
        return [(sum(row), all(best)) for row, best in zip(forced.log_probs, forced.greedy, strict=True)]


class Forced(LogitsProcessor):
    """Lets each row write a given text and nothing else, and keeps what it was worth; comes last among processors.

    Attributes:
        log_probs: natural logarithms of the probability of each token so far, for each row.
        greedy: whether it was the likeliest one.

    Args:
        texts: token ids for each row; after its end a row writes `filler`.
        start: columns of the prompts.
        filler: a token id.
    """

    supports_continuous_batching = False

    def __init__(self, texts: Sequence[Sequence[int]], start: int, filler: int) -> None:
        self._texts, self._start, self._filler = texts, start, filler
        self.log_probs: list[list[float]] = [[] for _ in texts]
        self.greedy: list[list[bool]] = [[] for _ in texts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, vocab]` scores of which all but the wanted token's are -inf."""
        step = input_ids.shape[1] - self._start
        tokens = [text[step] if step < len(text) else self._filler for text in self._texts]
        wanted = torch.tensor(tokens, device=scores.device)[:, None]
        worth = scores.float().log_softmax(-1).gather(1, wanted)[:, 0].tolist()
        best = (scores.argmax(-1) == wanted[:, 0]).tolist()
        for row, text in enumerate(self._texts):
            if step < len(text):
                self.log_probs[row].append(worth[row])
                self.greedy[row].append(best[row])
        return torch.full_like(scores, -torch.inf).scatter_(1, wanted, 0.0)


class StopTexts(StoppingCriteria):
    """Ends each row by itself once its new text holds one of the stop texts.

    The harness's own criterion ends a batch only when all rows are done, and takes new tokens to begin at one column; a
    method whose rows have different lengths shows shorter ones moved to the right.

    Args:
        tokenizer: of the model.
        stops: texts; the harness cuts the answer before them.
        prompts: `[rows, length]` ids, padded on the left.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompts: Tensor) -> None:
        self._tokenizer, self._stops, self._start = tokenizer, [stop for stop in stops if stop], prompts.shape[1]
        self._pad = tokenizer.pad_token_id
        self._padding = self._leading(prompts)
        lengths = [len(tokenizer.encode(stop, add_special_tokens=False)) for stop in self._stops]
        self._window = max(lengths, default=0) + LOOK_BACK

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: Any) -> Tensor:
        """`[rows]` bool."""
        moved = (self._leading(input_ids) - self._padding).clamp(min=0).tolist()
        texts = [
            self._tokenizer.decode(row[self._start + shift :][-self._window :])
            for row, shift in zip(input_ids.tolist(), moved, strict=True)
        ]
        ended = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)

    def _leading(self, ids: Tensor) -> Tensor:
        """How many pad tokens each row begins with."""
        return (ids == self._pad).cumprod(1).sum(1)


def _prepared(
    pretrained: str, method: str, options: dict[str, Any], device: str | None, dtype: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str, dict[str, Any]]:
    """Model, tokenizer, the set-up as text, and what it hands to `generate`."""
    from ..compare.setups import parse_setup
    from ..generate_methods import OPTIONS, prepare

    given = ",".join(f"{name}={_as_written(value)}" for name, value in options.items())
    text = method if not given else f"{method}{',' if ':' in method else ':'}{given}"
    setup = parse_setup(text, model=pretrained, engine="transformers", sampling={}, dtype=dtype)
    if setup.engine != "transformers":
        raise InputError(f"engine is {setup.engine!r}: the harness runs its own loop, use transformers")
    if setup.method not in OPTIONS:
        raise InputError(f"method is {setup.method!r}: under the harness use one of {', '.join(OPTIONS)}")
    if setup.sampling:
        name, value = next(iter(setup.sampling.items()))
        raise InputError(
            f"{name} is {value!r} in the set-up: the task says how to sample, or --gen_kwargs {name}={value}"
        )

    @cache  # one model may have several parts
    def loaded(name: str) -> Loaded:
        return load(name, dtype=setup.dtype, device=device)

    model, tokenizer = loaded(setup.model)
    prepared = prepare(setup.method, setup.options, model, lambda name: loaded(name).model, tokenizer.encode)
    return model, tokenizer, text, prepared.options


def _as_written(value: Any) -> str:
    """An option before the harness made a number or a truth of it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def main(arguments: Sequence[str]) -> None:
    """The harness's own command, which then knows `trimtab`.

    Args:
        arguments: of `lm_eval run`; without `--model` it is `trimtab`.
    """
    from lm_eval.__main__ import cli_evaluate

    given = list(arguments)
    if given[:1] == ["run"]:
        del given[0]
    named = any(argument in ("--model", "-M") or argument.startswith("--model=") for argument in given)
    sys.argv = ["lm_eval", "run", *([] if named else ["--model", "trimtab"]), *given]
    cli_evaluate()
