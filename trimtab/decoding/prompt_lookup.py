"""Drafts without a model: continue as the sequence did when it last stood at the same n-gram.

Prompt lookup (Saxena 2023) is the drafter of quantised self-speculation, Huang & Wen 2026, arXiv 2603.01399: the
longest n-gram of the last 3..1 tokens that occurred before, and the 5 tokens that followed it.
"""

from __future__ import annotations

from collections.abc import Iterable


class PromptLookup:
    """Incremental n-gram index of one sequence; looking up costs the same at any length.

    Args:
        max_ngram: longest n-gram to match, in tokens.
        min_ngram: shortest n-gram to match, in tokens.

    Raises:
        ValueError: not `1 <= min_ngram <= max_ngram`.
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"n-gram lengths must satisfy 1 <= min <= max, got min {min_ngram} and max {max_ngram}")
        self.tokens: list[int] = []
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        # n-gram -> index of the token that followed its latest occurrence
        self._continuations: dict[tuple[int, ...], int] = {}
        # what each appended token replaced in the index, so that it can be taken back
        self._journal: list[list[tuple[tuple[int, ...], int | None]]] = []

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens; O(max_ngram) each."""
        sequence, continuations = self.tokens, self._continuations
        for token in tuple(tokens):
            end = len(sequence)
            replaced = []
            for size in self._sizes:
                if size <= end:
                    ngram = tuple(sequence[end - size : end])
                    replaced.append((ngram, continuations.get(ngram)))
                    continuations[ngram] = end
            self._journal.append(replaced)
            sequence.append(token)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens; O(max_ngram) per token forgotten.

        Raises:
            ValueError: `length` is negative.
        """
        if length < 0:
            raise ValueError(f"length is {length}: give the number of tokens to keep, 0 or more")
        while len(self.tokens) > length:
            self.tokens.pop()
            for ngram, previous in self._journal.pop():
                if previous is None:
                    del self._continuations[ngram]
                else:
                    self._continuations[ngram] = previous

    def draft(self, count: int) -> list[int]:
        """Up to `count` tokens that followed the latest earlier occurrence of the longest matching suffix; [] if none.

        A continuation that reaches the end of the sequence goes on with its own draft, so a repeating passage of
        any period is drafted in full.
        """
        sequence = self.tokens
        end = len(sequence)
        for size in self._sizes:
            start = self._continuations.get(tuple(sequence[end - size :])) if size < end else None
            if start is not None:
                draft: list[int] = []
                for index in range(start, start + count):
                    draft.append(sequence[index] if index < end else draft[index - end])
                return draft
        return []
