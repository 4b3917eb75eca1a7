"""How much a data set repeats itself in its words; no model is asked.

Words are runs of letters, digits and underscores; every other character that is not white space is one of its own.
Case counts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .pool import same_text

_WORD = re.compile(r"\w+|[^\w\s]")
_SMOOTHING = 0.1


def words(text: str) -> list[str]:
    """The words of a text and its marks."""
    return _WORD.findall(text)


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n, in order."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def distinct_n(texts: Sequence[str], n: int = 3) -> float:
    """Different n-grams over all n-grams of the data set (Li et al. 2016, arXiv 1510.03055); 1 is best.

    It falls with every text that is added: compare data sets of one size.

    Returns:
        From 0 to 1; NaN where no text has n words.
    """
    found = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(found)) / len(found) if found else math.nan


def repetition(texts: Sequence[str], n: int) -> float:
    """rep-n: 1 - different n-grams over all n-grams within a text, the mean over texts; 0 is best.

    Welleck et al. 2019, arXiv 1908.04319.

    Returns:
        From 0 to 1; NaN where no text has n words.
    """
    return _mean(_repeated(tokens, n) for text in texts if len(tokens := words(text)) >= n)


def diversity(texts: Sequence[str]) -> float:
    """Product of 1 - rep-n over n = 2, 3, 4 within a text, the mean over texts; 1 is best.

    Su et al. 2022, arXiv 2202.06417.

    Returns:
        From 0 to 1; NaN where no text has four words.
    """
    return _mean(
        math.prod(1 - _repeated(tokens, n) for n in (2, 3, 4)) for text in texts if len(tokens := words(text)) >= 4
    )


def _repeated(tokens: Sequence[str], n: int) -> float:
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams)


def duplicates(texts: Sequence[str]) -> int:
    """Texts that an earlier one equals, white space aside; empty ones count."""
    return len(texts) - len({same_text(text) for text in texts})


def copies(texts: Sequence[str], reference: Sequence[str]) -> int:
    """Texts that one of `reference` equals, white space aside."""
    real = {same_text(text) for text in reference}
    return sum(same_text(text) in real for text in texts)


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text against all others (Zhu et al. 2018, arXiv 1802.01886); 0 is best.

    An order without a match counts as 0.1 matches (Chen and Cherry 2014, method 1), as in the authors' code. Texts of
    fewer than four words are left out.

    Returns:
        From 0 to 1; NaN for fewer than two texts.
    """
    tokens = [found for text in texts if len(found := words(text)) >= 4]
    if len(tokens) < 2:
        return math.nan
    counted = [[Counter(ngrams(found, n)) for found in tokens] for n in (1, 2, 3, 4)]
    most = [_two_most(counts) for counts in counted]
    lengths = Counter(map(len, tokens))
    scores = []
    for index, found in enumerate(tokens):
        logs = [_log_precision(counts[index], index, order) for counts, order in zip(counted, most, strict=True)]
        scores.append(math.exp(sum(logs) / 4 + _brevity(len(found), lengths)))
    return _mean(scores)


def _two_most(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """By n-gram: the largest count in one text, that text, and the largest in any other."""
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, grams in enumerate(counts):
        for gram, count in grams.items():
            first, owner, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, index, first) if count > first else (first, owner, max(second, count))
    return most


def _log_precision(
    grams: Counter[tuple[str, ...]], index: int, most: dict[tuple[str, ...], tuple[int, int, int]]
) -> float:
    matched = 0
    for gram, count in grams.items():
        first, owner, second = most[gram]
        matched += min(count, second if owner == index else first)
    return math.log((matched or _SMOOTHING) / grams.total())


def _brevity(length: int, lengths: Counter[int]) -> float:
    """Logarithm of BLEU's penalty for a text shorter than the nearest in length of the others."""
    others = (other for other, count in lengths.items() if other != length or count > 1)
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return min(0.0, 1 - nearest / length)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
