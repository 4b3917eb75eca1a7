"""Diversity and coherence of a data set: texts in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import InputError
from .mauve import mauve
from .ngrams import copies, distinct_n, diversity, duplicates, repetition, self_bleu, words
from .perplexity import perplexity
from .vectors import area_under_roc, auroc, cosine_between, pairwise_cosine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..ability.sentence_encoder import SentenceEncoder

__all__ = [
    "Measure",
    "area_under_roc",
    "auroc",
    "copies",
    "cosine_between",
    "distinct_n",
    "diversity",
    "duplicates",
    "mauve",
    "measure",
    "pairwise_cosine",
    "perplexity",
    "repetition",
    "self_bleu",
    "words",
]


@dataclass(frozen=True)
class Measure:
    """One line of the report.

    Attributes:
        name: as a key of JSON.
        label: for people.
        generated: of the data set; None where it cannot be told.
        reference: of the real texts alone, to read the other by; None where that says nothing.
        better: "more", "less", or what is best.
        missing: why `generated` is None.
    """

    name: str
    label: str
    generated: float | None
    reference: float | None = None
    better: str = ""
    missing: str = ""


def measure(
    texts: Sequence[str],
    reference: Sequence[str] = (),
    *,
    encoder: SentenceEncoder | None = None,
    judge: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    no_encoder: str = "no sentence encoder",
) -> list[Measure]:
    """All measures that the arguments allow; the others say what they lack.

    Args:
        texts: of the data set; empty ones are counted and take no further part.
        reference: real texts, held out.
        encoder: for the cosines, the classifier and MAUVE.
        judge: a causal LM and its tokenizer, for perplexity.
        no_encoder: what to say where `encoder` is None.

    Raises:
        InputError: there is no text.
    """
    written, real = [text for text in texts if text.strip()], [text for text in reference if text.strip()]
    if not written:
        raise InputError(f"texts has {len(texts)} texts, none with any words: nothing can be measured")
    found = [
        Measure("texts", "texts", len(texts), len(real) or None),
        Measure("empty", "empty", len(texts) - len(written), better="0"),
        Measure("words", "words a text", *_both(_mean_words, written, real)),
        Measure("duplicates", "duplicates", duplicates(written), duplicates(real) if real else None, "0"),
    ]
    no_reference = "" if real else "no reference texts"
    found.append(_one("copies", "copies of the reference", "0", no_reference, lambda: copies(written, real)))
    found += [
        Measure("distinct_3", "different 3-grams / all", *_both(distinct_n, written, real), "more"),
        Measure("diversity", "1 - repetition in a text", *_both(diversity, written, real), "more"),
        Measure("self_bleu", "self-BLEU", *_both(self_bleu, written, real), "less"),
    ]
    found += _of_vectors(written, real, encoder, no_encoder, no_reference)
    if judge is None:
        return [*found, Measure("perplexity", "perplexity", None, better="near the reference", missing="no judge")]
    return [
        *found,
        Measure(
            "perplexity",
            "perplexity",
            *_both(lambda each: perplexity(each, *judge), written, real),
            "near the reference",
        ),
    ]


def _of_vectors(
    written: Sequence[str], real: Sequence[str], encoder: SentenceEncoder | None, no_encoder: str, no_reference: str
) -> list[Measure]:
    names = (
        ("pairwise_cosine", "cosine of two texts", "less"),
        ("cosine_to_reference", "cosine to the reference", "more"),
        ("auroc", "AUROC against the reference", "0.5"),
        ("mauve", "MAUVE", "more"),
    )
    if encoder is None:
        return [Measure(name, label, None, None, better, no_encoder) for name, label, better in names]
    vectors, others = encoder.encode(list(written)), encoder.encode(list(real))
    (name, label, better), *rest = names
    found = [Measure(name, label, *_both(pairwise_cosine, vectors, others), better)]
    for (name, label, better), compute in zip(rest, (cosine_between, auroc, mauve), strict=True):
        found.append(_one(name, label, better, no_reference, partial(compute, vectors, others)))
    return found


def _both(
    compute: Callable[..., float], written: Sequence[str] | Tensor, real: Sequence[str] | Tensor
) -> tuple[float | None, float | None]:
    return _number(compute(written)), _number(compute(real)) if len(real) else None


def _one(name: str, label: str, better: str, missing: str, compute: Callable[[], float]) -> Measure:
    if missing:
        return Measure(name, label, None, None, better, missing)
    try:
        return Measure(name, label, _number(compute()), None, better)
    except InputError as error:  # too few texts, or a package that is not installed
        return Measure(name, label, None, None, better, str(error))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_words(texts: Sequence[str]) -> float:
    return sum(len(words(text)) for text in texts) / len(texts)
