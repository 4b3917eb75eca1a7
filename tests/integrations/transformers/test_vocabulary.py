"""Two models whose tokenizers differ are refused where their files say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.conftest import tiny
from trimtab import EntropyAdaptive, InputError, LogitFusion, Steer
from trimtab.integrations.transformers.vocabulary import check_same_vocabulary

TOKENS = {"a": 0, "b": 1, "c": 2}


def model_of(folder: Path, vocabulary: Any, added: list[dict[str, Any]] | None = None) -> PreTrainedModel:
    """A model that was loaded from a directory, as far as it knows."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    model = tiny("llama")
    model.name_or_path = str(folder)
    return model


def test_common_tokens_must_have_the_same_ids(tmp_path: Path) -> None:
    here = model_of(tmp_path / "here", TOKENS)
    for name, vocabulary in (("same", TOKENS), ("more", TOKENS | {"d": 3}), ("pairs", [["a", -1.0], ["b", -2.0]])):
        check_same_vocabulary("small", here, "large", model_of(tmp_path / name, vocabulary))
    other = model_of(tmp_path / "other", {"a": 0, "b": 2, "c": 1})
    with pytest.raises(InputError, match="small has token 'b' as id 1 and large as id 2: use models of one tokenizer"):
        check_same_vocabulary("small", here, "large", other)
    marked = model_of(tmp_path / "marked", TOKENS, [{"content": "a", "id": 3}])
    with pytest.raises(InputError, match="token 'a'"):
        check_same_vocabulary("small", marked, "large", here)


def test_nothing_is_known_without_a_file(tmp_path: Path) -> None:
    here, memory = model_of(tmp_path / "here", TOKENS), tiny("llama")
    check_same_vocabulary("small", here, "large", memory)
    broken = model_of(tmp_path / "broken", TOKENS)
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    check_same_vocabulary("small", here, "large", broken)


def test_every_method_checks(tmp_path: Path) -> None:
    here = model_of(tmp_path / "here", TOKENS)
    other = model_of(tmp_path / "other", {"a": 1, "b": 0})
    prompt: dict[str, Any] = {"inputs": torch.tensor([[5, 6, 7]]), "max_new_tokens": 2, "do_sample": False}
    with pytest.raises(InputError, match="small has token 'a'"):
        here.generate(custom_generate=EntropyAdaptive(other, 1.0), **prompt)
    with pytest.raises(InputError, match=r"experts\[0\] has token 'a'"):
        LogitFusion(here, [other])
    with pytest.raises(InputError, match="base has token 'a' as id 1 and the model that generates as id 0"):
        here.generate(logits_processor=[LogitFusion(other, [other])], **prompt)
    with pytest.raises(InputError, match="expert has token 'a'"):
        Steer(other, negatives=[[[5]]], expert=here)
    with pytest.raises(InputError, match="base has token 'a'"):
        here.generate(logits_processor=[Steer(other, eta=0.0)], **prompt)
