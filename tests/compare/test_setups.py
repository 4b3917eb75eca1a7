"""Set-ups: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.compare.setups import Setup, parse_setup
from trimtab.errors import InputError


def parsed(text: str, **given: Any) -> Setup:
    return parse_setup(text, **{"model": "smollm2-135m", "engine": "transformers", "sampling": {}, **given})


def test_reads_method_options_and_where_it_runs() -> None:
    found = parsed("quantized:mode=lossless,bits=8,model=other/model,temperature=0.7,seed=3")
    assert (found.method, found.options) == ("quantized", {"mode": "lossless", "bits": 8})
    assert (found.model, found.engine) == ("other/model", "transformers")
    assert found.sampling == {"temperature": 0.7, "seed": 3}
    assert not found.greedy


def test_global_settings_hold_unless_the_setup_has_its_own() -> None:
    found = parsed("none:top_p=0.5", sampling={"top_p": 0.9, "temperature": 1.0}, dtype="float32")
    assert found.sampling == {"top_p": 0.5, "temperature": 1.0}
    assert found.dtype == "float32"
    assert parsed("none:dtype=bfloat16", dtype="float32").dtype == "bfloat16"


def test_url_of_a_side_and_repeated_keys() -> None:
    found = parsed("none:engine=http://127.0.0.1:8000/v1/", model=None)
    assert (found.engine, found.is_server, found.model) == ("http://127.0.0.1:8000/v1", True, "")
    assert parsed("none:engine=http://x/v1", dtype="float32").dtype is None  # of the other side
    fusion = parsed("fusion:small-base=a/b,expert=c/d,expert=e/f,alpha=dynamic")
    assert fusion.options == {"small_base": "a/b", "expert": ("c/d", "e/f"), "alpha": "dynamic"}


def test_toml_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "side.toml"
    path.write_text(
        'method = "steer"\nmodel = "m/m"\ntemperature = 1\n[options]\nbase = "b/b"\nnegative = ["no, no"]\n'
    )
    found = parsed(str(path))
    assert found.options == {"base": "b/b", "negative": ("no, no",)}
    assert (found.model, found.sampling) == ("m/m", {"temperature": 1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantised", "did you mean quantized"),
        ("quantized:bit=8", "did you mean bits"),
        ("quantized:bits=eight", "bits is 'eight': give a whole number"),
        ("quantized:bits=7", "bits is 7: use one of 8, 4, 16"),
        ("quantized:bits", "'bits' is no key=value"),
        ("quantized:bits=8,bits=4", "bits is given twice"),
        ("quantized:bits=", "bits is empty"),
        ("quantized:quantize_head=yes", "quantize_head is 'yes': use true or false"),
        ("quantized:bits=16,mode=lossless", "mode lossless has no effect with bits 16"),
        ("ead:small=low-bit", "threshold is missing"),
        ("ead:small=low-bit,threshold=nan", "threshold is 'nan': give a number"),
        ("fusion:small_base=a/b", "expert is missing"),
        ("assisted", "assistant_model is missing"),
        ("prompt_lookup:prompt_lookup_num_tokens=0", "at least 1"),
        ("temperature:rule=best", "rule is 'best': use one of expected, likeliest"),
        ("temperature:temperature=1", "the method chooses it"),
        ("none:engine=vlm", "did you mean vllm"),
        ("none:engine=tpu", "engine is 'tpu'"),
        ("none:temperature=-1", "temperature is -1"),
        ("none:top_p=2", "top_p is 2"),
        ("none:dtype=int4", "dtype is 'int4'"),
        ("quantized:mode=lossless,engine=vllm", "vLLM verifies a draft once"),
        ("quantized:outliers=3,engine=vllm", "has no option 'outliers' in vllm"),
        ("prompt_lookup:engine=vllm", "does not run in vLLM"),
        ("quantized:engine=http://x/v1", "does not run in a server"),
        ("ead:small=low-bit,engine=http://x/v1", "no option 'small'"),
        ("none:engine=http://x/v1,dtype=float32", "a server has its own"),
        ("absent.toml", "cannot be read"),
    ],
)
def test_refusals_name_the_setup_and_the_remedy(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(text)
    assert str(caught.value).startswith(f"set-up {text!r}: ")
    assert message in str(caught.value)
    assert "--" not in str(caught.value).removeprefix(f"set-up {text!r}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method = ", "not TOML"),
        ('model = "x"', "method is None"),
        ('method = "quantized"\nbits = 8', "belongs under [options]"),
        ('method = "none"\nmodle = "x"', "did you mean model"),
        ('method = "quantized"\n[options]\nbits = "8"', "bits is '8': give a whole number"),
        ('method = "quantized"\n[options]\nbits = true', "bits is True"),
        ('method = "none"\noptions = 3', "options is no table"),
    ],
)
def test_toml_refusals(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "side.toml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        parsed(str(path))
    assert message in str(caught.value)


def test_a_model_is_needed_in_this_process() -> None:
    with pytest.raises(InputError, match="it has no model: give --model"):
        parsed("none", model=None)
