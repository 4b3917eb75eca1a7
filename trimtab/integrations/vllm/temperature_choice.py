"""From a prompt's tokens to the temperature that its request is sampled at, in a thread beside the engine."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from vllm.config import VllmConfig
from vllm.tokenizers import cached_tokenizer_from_config

from ...ability.classifier import AbilityClassifier
from ...decoding.score_table import ScoreTable, parameters
from ...decoding.temperature import ABILITIES
from ...decoding.temperature_rule import TemperatureRule
from ...errors import InputError
from .model_size import parameter_count
from .settings import settings
from .user_turn import UserTurn

AUTO = "auto"
SETTINGS = ("model", "table", "rule", "chat_template")

logger = logging.getLogger(__name__)


class Choice(NamedTuple):
    """What a request is sampled at, and why.

    Attributes:
        ability: the named one, or the likeliest; None if the prompt has no text.
        probabilities: of all abilities, None if the request named its own.
        chosen: what the table recommends; None if the prompt has no text.
        temperature: the lower of that and the request's own.
    """

    ability: str | None
    probabilities: dict[str, float] | None
    chosen: float | None
    temperature: float


class TemperatureChoice:
    """Chooses temperatures for the requests of one engine.

    Args:
        vllm_config: of the engine; the section `temperature` of its settings may hold `model` (a name of the table or
            a size, 7B say; default: the engine's own), `table` (a file), `rule` and `chat_template` (a file).

    Raises:
        InputError: a setting cannot be used, the encoder's package is missing, or the engine has no tokenizer.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        # One thread: two would contend for the cores that the engine runs on. It loads the encoder too, since the
        # engine builds its processors under a default device and dtype of its own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trimtab-temperature")
        self._thread.submit(self._load, vllm_config).result()

    def submit(self, asked: str, prompt: Sequence[int] | Tensor | None, ceiling: float) -> Future[Choice]:
        """Start choosing.

        Args:
            asked: `AUTO` or an ability.
            prompt: `[tokens]` ids; None if the request has embeddings instead.
            ceiling: the request's own temperature.
        """
        if asked != AUTO:
            done: Future[Choice] = Future()
            done.set_result(self._bounded(asked, None, self._rule.of_ability(asked), ceiling))
            return done
        return self._thread.submit(self._choose, prompt, ceiling)

    def _load(self, vllm_config: VllmConfig) -> None:
        given = settings(vllm_config, "temperature", SETTINGS)
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        if tokenizer is None:
            raise InputError("temperature selection reads prompts: start the engine without skip_tokenizer_init")
        self._rule = _rule(vllm_config, given)
        self._turn = UserTurn(tokenizer, _template(given))
        classifier = AbilityClassifier()
        # the samples of one prompt, and prompts that come back after preemption
        self._probabilities = functools.lru_cache(256)(lambda text: classifier.probabilities([text]))
        # the first forward pass is slow, and a text that cannot be read should stop the engine, not a request
        self._probabilities("Hello")

    def _choose(self, prompt: Sequence[int] | Tensor | None, ceiling: float) -> Choice:
        try:
            return self._read(prompt, ceiling)
        except Exception:  # would be raised in the engine's step, and take every other request with it
            logger.exception("a prompt could not be read: its request keeps its own temperature")
            return Choice(None, None, None, ceiling)

    def _read(self, prompt: Sequence[int] | Tensor | None, ceiling: float) -> Choice:
        ids = prompt.tolist() if isinstance(prompt, Tensor) else prompt
        text = self._turn.text(ids) if ids else ""
        if not text.strip():
            return Choice(None, None, None, ceiling)
        row = self._probabilities(text)
        shares = dict(zip(ABILITIES, row[0].tolist(), strict=True))
        return self._bounded(max(shares, key=shares.__getitem__), shares, float(self._rule.choose(row)), ceiling)

    @staticmethod
    def _bounded(ability: str, shares: dict[str, float] | None, chosen: float, ceiling: float) -> Choice:
        return Choice(ability, shares, chosen, min(chosen, ceiling))


def _rule(vllm_config: VllmConfig, given: dict[str, Any]) -> TemperatureRule:
    table = ScoreTable.read(given["table"]) if "table" in given else ScoreTable.read()
    model: str | float = given.get("model", vllm_config.model_config.model)
    if isinstance(model, str):
        model = parameters(model)
    if "model" not in given and not table.holds(model):
        model = parameter_count(vllm_config.model_config)
    return TemperatureRule(model, table=table, rule=given.get("rule", "expected"))


def _template(given: dict[str, Any]) -> str | None:
    if "chat_template" not in given:
        return None
    try:
        return Path(given["chat_template"]).read_text(encoding="utf-8")
    except (OSError, TypeError) as error:
        raise InputError(f"chat_template is {given['chat_template']!r}, which cannot be read: {error}") from error
