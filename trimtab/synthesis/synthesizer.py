"""The loop of O'Neill et al. 2023, arXiv 2308.07645: every text is written away from texts that came before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..integrations.transformers.padding import pad_left
from ..integrations.transformers.runner import context_length
from ..integrations.transformers.steer import Steer
from .pool import Pool
from .records import Record
from .schedule import batches, random_for, seed_order, torch_seed
from .settings import Settings
from .template import Fields, Template


class _Prompt(NamedTuple):
    """Of one text."""

    seed: int
    text: str
    ids: list[int]


class Synthesizer:
    """Generates data sets with STEER; reads `settings` and keeps nothing between two runs.

    The records are a function of the arguments, the settings and the machine's arithmetic: text `index` starts from a
    seed that depends on `(seed, index)`, its negatives depend on those and on the texts before its batch, and each
    batch samples with a seed of its own.

    Args:
        expert: a causal LM, fine-tuned to write texts of the kind wanted.
        base: what it was fine-tuned from, of the same tokenizer; None with `gamma=0`.
        tokenizer: theirs.
        settings: strengths, pool and sampler.

    Raises:
        InputError: `base` is missing with gamma above 0, the models do not fit each other, or `chat` is asked for and
            the tokenizer has no chat template.
    """

    def __init__(
        self,
        expert: PreTrainedModel,
        base: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings | None = None,
    ) -> None:
        self.expert, self.tokenizer = expert, tokenizer
        self.settings = settings if settings is not None else Settings()
        if base is None and self.settings.gamma > 0:
            raise InputError(f"base is None and gamma is {self.settings.gamma:g}: give the expert's base, or gamma=0")
        self.base = expert if base is None else base
        if self.settings.chat and not tokenizer.chat_template:
            raise InputError("chat is asked for, and the tokenizer has no chat template: leave it out")
        self._ends = _end_tokens(expert, tokenizer)
        if self.settings.steered:
            self._steer([[[0]]])  # what it refuses is refused before the first text

    def run(
        self,
        seeds: Sequence[Fields],
        count: int,
        *,
        template: Template | str,
        reference: Sequence[str] = (),
    ) -> Iterator[Record]:
        """Generate `count` texts.

        Args:
            seeds: objects with a `text` each, the first of the pool, and the fields that the template names.
            count: at least 1.
            template: makes a prompt from a seed.
            reference: real texts for evaluation: none may be a seed's, and none enters the pool.

        Raises:
            InputError: before the first text.
        """
        for batch in self.batches(seeds, [count], template=template, reference=reference):
            yield from batch

    def batches(
        self,
        seeds: Sequence[Fields],
        counts: Sequence[int],
        *,
        template: Template | str,
        reference: Sequence[str] = (),
        done: Sequence[Record] = (),
    ) -> Iterator[list[Record]]:
        """Batches of records, going on from those that are done.

        Args:
            seeds: as for `run`.
            counts: how many texts were asked for, rising; several where a finished data set is made larger.
            template: as for `run`.
            reference: as for `run`.
            done: the first records, whole batches of the schedule of these counts.

        Raises:
            InputError: before the first text.
        """
        template = Template(template) if isinstance(template, str) else template
        if not counts or min(counts) < 1:
            raise InputError(f"count is {counts[-1] if counts else None!r}: give a whole number of at least 1")
        texts = _texts(seeds)
        prompts = template.prompts(seeds)
        ids = self._checked_ids(prompts)
        pool = Pool(texts, reference)
        if self.settings.eta > 0:
            pool.draw(self.settings.negative_examples, random_for("check"))
        return self._loop(seeds, template, list(zip(prompts, ids, strict=True)), pool, counts, done)

    def _loop(
        self,
        seeds: Sequence[Fields],
        template: Template,
        prompts: Sequence[tuple[str, list[int]]],
        pool: Pool,
        counts: Sequence[int],
        done: Sequence[Record],
    ) -> Iterator[list[Record]]:
        self._grow(pool, done)
        for start, end in batches(counts, self.settings.batch_size):
            if start < len(done):
                continue
            chosen = [seed_order(self.settings.seed, len(seeds), index) for index in range(start, end)]
            rows = [_Prompt(seed, *prompts[seed]) for seed in chosen]
            drawn, negatives = self._negatives(pool, rows, start)
            written = self._generate([row.ids for row in rows], negatives, torch_seed(self.settings.seed, start))
            records = [
                Record(
                    start + offset, text, row.text, row.seed, template.used(seeds[row.seed]), positions, tokens, finish
                )
                for offset, (row, positions, (text, tokens, finish)) in enumerate(
                    zip(rows, drawn, written, strict=True)
                )
            ]
            yield records
            self._grow(pool, records)

    def _grow(self, pool: Pool, records: Sequence[Record]) -> None:
        if self.settings.pool_growth:
            for record in records:
                pool.add(record.text)

    # -- prompts -------------------------------------------------------------------------------------------------------

    def _checked_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        room = self._room()
        found = []
        for index, prompt in enumerate(prompts):
            ids = self._ids(prompt)
            if not ids:
                raise InputError(f"the prompt of seed {index} has no tokens: give it some text")
            if room is not None and len(ids) > room:
                raise InputError(
                    f"the prompt of seed {index} has {len(ids)} tokens and max_new_tokens is "
                    f"{self.settings.max_new_tokens}, more than the context: shorten one by {len(ids) - room} tokens"
                )
            found.append(ids)
        return found

    def _room(self) -> int | None:
        """Tokens that a prompt may have."""
        limits = [context_length(model) for model in (self.expert, self.base)]
        known = [limit for limit in limits if limit is not None]
        return min(known) - self.settings.max_new_tokens if known else None

    def _ids(self, text: str) -> list[int]:
        if not self.settings.chat:
            return list(self.tokenizer(text, verbose=False)["input_ids"])
        messages = [{"role": "user", "content": text}]
        return list(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        )

    def _negatives(
        self, pool: Pool, rows: Sequence[_Prompt], start: int
    ) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
        """For each row the positions of what was drawn, and the ids of its negative prompts."""
        settings = self.settings
        if settings.eta == 0:
            return [[] for _ in rows], []
        drawn, ids = [], []
        for offset, row in enumerate(rows):
            random = random_for(settings.seed, "negatives", start + offset)
            draws = [pool.draw(settings.negative_examples, random) for _ in range(settings.negatives_per_row)]
            fitted = [self._fitted(pool, positions, row.text) for positions in draws]
            drawn.append([positions for positions, _ in fitted])
            ids.append([tokens for _, tokens in fitted])
        return drawn, ids

    def _fitted(self, pool: Pool, positions: list[int], prompt: str) -> tuple[list[int], list[int]]:
        """As many of the texts drawn as the context holds, with the prompt after them, as ids."""
        room = self._room()
        while True:
            parts = [*(pool.texts[position] for position in positions), prompt]
            ids = self._ids(self.settings.separator.join(parts))
            if room is None or len(ids) <= room or not positions:
                return positions, ids
            positions = positions[:-1]

    # -- generation ----------------------------------------------------------------------------------------------------

    def _steer(self, negatives: list[list[list[int]]]) -> Steer:
        settings = self.settings
        return Steer(
            self.base,
            settings.gamma,
            settings.eta,
            negatives or None,
            settings.plausibility,
            expert=self.expert,
            balanced=settings.balanced,
        )

    def _generate(
        self, prompts: list[list[int]], negatives: list[list[list[int]]], seed: int
    ) -> list[tuple[str, int, str]]:
        """Text, tokens and finish of each row."""
        settings, device = self.settings, self.expert.device
        pad = self._pad()
        ids = pad_left(prompts, pad)
        mask = pad_left([[1] * len(prompt) for prompt in prompts])
        stopping = {"stop_strings": list(settings.stop), "tokenizer": self.tokenizer} if settings.stop else {}
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            output: Tensor = self.expert.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                logits_processor=[self._steer(negatives)] if settings.steered else [],
                do_sample=True,
                temperature=settings.temperature,
                top_k=settings.top_k,
                # the expert's own defaults would come in otherwise
                top_p=1.0,
                repetition_penalty=1.0,
                max_new_tokens=settings.max_new_tokens,
                pad_token_id=pad,
                **stopping,
            )
        return [self._finished(row) for row in output[:, ids.shape[1] :].tolist()]

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else min(self._ends, default=0)

    def _finished(self, tokens: list[int]) -> tuple[str, int, str]:
        end = next((index for index, token in enumerate(tokens) if token in self._ends), None)
        text = self._decoded(tokens[:end])
        found = [position for stop in self.settings.stop if (position := text.find(stop)) >= 0]
        if found:
            # what follows in the row is padding
            length = next(n for n in range(1, len(tokens) + 1) if self._stopped(tokens[:n]))
            return text[: min(found)].strip(), length, "stop"
        if end is not None:
            return text.strip(), end, "eos"
        return text.strip(), len(tokens), "length"

    def _stopped(self, tokens: list[int]) -> bool:
        text = self._decoded(tokens)
        return any(stop in text for stop in self.settings.stop)

    def _decoded(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _texts(seeds: Sequence[Fields]) -> list[str]:
    if not seeds:
        raise InputError("seeds is empty: give at least one object with a text")
    for index, seed in enumerate(seeds):
        if not isinstance(seed.get("text"), str) or not seed["text"].strip():
            raise InputError(f'seed {index} has "text" {seed.get("text")!r:.40}: give it some text')
    return [seed["text"] for seed in seeds]
