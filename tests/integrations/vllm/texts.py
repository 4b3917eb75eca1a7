"""Twelve prompts of all kinds, one of them longer than what is read in a step."""

from __future__ import annotations

TEXTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Q: What is 12 + 30?\nA:",
    "The three primary colours are red, " * 12,
    "Dear Sir or Madam,",
    "List of planets: Mercury, Venus,",
    "In 1969, the first",
    "The recipe for bread needs",
    "import numpy as np\n",
    "Water boils at",
    "She opened the door and",
)
