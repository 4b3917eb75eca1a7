from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel
from typer.testing import CliRunner, Result

import trimtab
from trimtab.cli import app
from trimtab.generate_command import check_sampling, summary
from trimtab.generate_methods import check_method
from trimtab.integrations.transformers import loading
from trimtab.integrations.transformers.quantized_verification import QuantizedVerification, VerificationStats

COMMAND = (sys.executable, "-m", "trimtab.cli")
MODEL = ("--model", "smollm2-135m")
PROMPT = "List five colours, and say of each why you like it."


def invoke(*args: str, input: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(args), input=input)


def run(*args: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], input=input, capture_output=True, text=True, timeout=120, check=False)


def refused(result: Result) -> str:
    """The one line of an error."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("trimtab: error: ")
    return lines[0]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that gets as far as loading a model."""

    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded before the arguments were checked")

    monkeypatch.setattr(loading, "load", load)


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch, smollm2: loading.Loaded) -> Callable[..., None]:
    """Makes `--model` give a model from memory with the tokenizer of smollm2."""

    def use(model: PreTrainedModel | None = None) -> None:
        loaded = loading.Loaded(smollm2.model if model is None else model, smollm2.tokenizer)
        monkeypatch.setattr(loading, "load", lambda *args, **options: loaded)

    return use


# -- start ----------------------------------------------------------------------------------------------------------


def test_importing_the_command_is_light() -> None:
    code = "import sys, trimtab.cli; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_are_fast(option: str) -> None:
    start = time.perf_counter()
    done = run(option)
    assert time.perf_counter() - start < 1.5  # torch alone takes longer
    assert done.returncode == 0
    assert done.stderr == ""
    assert (trimtab.__version__ if option == "--version" else "generate") in done.stdout


def test_help_lists_every_option() -> None:
    shown = invoke("generate", "--help").stdout
    for option in ("--mode", "--bits", "--draft-length", "--repetition-penalty", "--prompt-file", "--no-chat"):
        assert option in shown


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["PROMPT is missing", "--prompt-file"]),
        ([""], ["PROMPT is empty"]),
        (["two", "words"], ["words", "quotes"]),
        (["x", "--method", "quantised"], ["--method is 'quantised'", "did you mean quantized"]),
        (["x", "--mode", "losless"], ["--mode is 'losless'", "did you mean lossless"]),
        (["x", "--bits", "9"], ["--bits is 9", "8, 4, 16"]),
        (["x", "--bits", "eight"], ["--bits is 'eight'", "whole number"]),
        (["x", "--draft-length", "0"], ["--draft-length is 0", "at least 1"]),
        (["x", "--window", "0", "--mode", "lossless"], ["--window is 0", "at least 1"]),
        (["x", "--max-ngram", "-1"], ["--max-ngram is -1", "at least 1"]),
        (["x", "--outliers", "-1"], ["--outliers is -1", "at least 0"]),
        (["x", "--drafter", "lookup"], ["--drafter is 'lookup'", "prompt_lookup"]),
        (["x", "--activation-bits", "4"], ["--activation-bits is 4", "16, 8"]),
        (["x", "--method", "none", "--bits", "8"], ["--bits 8 has no effect", "--method none", "--method quantized"]),
        (["x", "--method", "none", "--quantize-head"], ["--quantize-head has no effect", "--method none"]),
        (["x", "--window", "4"], ["--window 4 has no effect", "--mode lossless"]),
        (["x", "--bits", "16", "--mode", "lossless"], ["--mode lossless has no effect", "--bits 16"]),
        (["x", "--bits", "4", "--activation-bits", "8"], ["--activation-bits 8 has no effect", "--bits 4"]),
        (["x", "--drafter", "none", "--max-ngram", "2"], ["--max-ngram 2 has no effect", "--drafter none"]),
        (["x", "--method", "ead", "--threshold", "1"], ["--small is missing", "ead"]),
        (["x", "--method", "ead", "--small", "low-bit"], ["--threshold is missing"]),
        (["x", "--method", "ead", "--small", "low-bit", "--threshold", "-1"], ["--threshold is -1"]),
        (["x", "--method", "ead", "--small", "low-bit", "--threshold", "0", "--decay", "1"], ["--decay is 1"]),
        (["x", "--method", "ead", "--bits", "8"], ["--bits 8 has no effect", "--method ead", "--method quantized"]),
        (["x", "--small", "low-bit"], ["--small low-bit has no effect", "--method quantized", "--method ead"]),
        (["x", "--method", "ead", "--small", "smolm2-135m", "--threshold", "1"], ["did you mean 'smollm2-135m'"]),
        (["x", "--method", "fusion", "--expert", "smollm2-135m"], ["--small-base is missing"]),
        (["x", "--method", "fusion", "--small-base", "smollm2-135m"], ["--expert is missing"]),
        (["x", "--method", "fusion", "--alpha", "strong"], ["--alpha is 'strong'", "number"]),
        (["x", "--method", "steer"], ["--base is missing"]),
        (["x", "--method", "steer", "--base", "smollm2-135m", "--eta", "0.5"], ["--eta is 0.5 without --negative"]),
        (["x", "--method", "steer", "--base", "smollm2-135m", "--gamma", "-1"], ["--gamma is -1"]),
        (["x", "--method", "steer", "--base", "smollm2-135m", "--plausibility", "2"], ["--plausibility is 2"]),
        (["x", "--method", "steer", "--base", "smollm2-135m", "--negative", ""], ["--negative is ''"]),
        (["x", "--temperature", "-1"], ["--temperature is -1", "greedy"]),
        (["x", "--temperature", "nan"], ["--temperature is 'nan'", "number"]),
        (["x", "--top-p", "0.9"], ["--top-p 0.9 has no effect with greedy", "--temperature"]),
        (["x", "--temperature", "1", "--top-p", "1.5"], ["--top-p is 1.5", "up to 1"]),
        (["x", "--temperature", "1", "--min-p", "0"], ["--min-p is 0", "above 0"]),
        (["x", "--temperature", "1", "--top-k", "0"], ["--top-k is 0", "at least 1"]),
        (["x", "--repetition-penalty", "0"], ["--repetition-penalty is 0", "above 0"]),
        (["x", "--seed", "-3"], ["--seed is -3"]),
        (["x", "--max-new-tokens", "0"], ["--max-new-tokens is 0", "at least 1"]),
        (["x", "--threads", "0"], ["--threads is 0", "at least 1"]),
        (["x", "--dtype", "float8"], ["--dtype is 'float8'", "bfloat16"]),
        (["x", "--stop", ""], ["--stop is ''"]),
        (["x", "--model", "smolm2-135m"], ["--model is 'smolm2-135m'", "did you mean 'smollm2-135m'"]),
        (["x", "--model", ""], ["--model is ''", "gemma3-270m"]),
        (["x", "--system", "s", "--no-chat"], ["--system is 's'", "--no-chat"]),
        (["x", "--prompt-file", "p.txt"], ["both given"]),
        (["--prompt-file", "/nowhere/p.txt"], ["/nowhere/p.txt", "cannot be read"]),
        (["x", "--wndow", "4"], ["--wndow", "did you mean --window"]),
    ],
    ids=lambda value: "_".join(value)[:60] if isinstance(value, list) else None,
)
def test_refuses_bad_arguments_before_loading(args: list[str], parts: list[str]) -> None:
    line = refused(invoke("generate", *args))
    for part in parts:
        assert part in line


def test_refuses_a_mistyped_command() -> None:
    assert "generate" in refused(invoke("genrate", "x"))


@pytest.mark.usefixtures("no_loading")
def test_refuses_stdin_that_is_empty_or_not_utf8() -> None:
    assert "empty" in refused(invoke("generate", "-", input="\n"))
    assert "UTF-8" in refused(invoke("generate", "-", input=b"a\xff"))


def test_refuses_an_unknown_model(tmp_path: Path) -> None:
    missing = str(tmp_path / "model")
    assert missing in refused(invoke("generate", "x", "--model", missing))


def test_refuses_an_unusable_device() -> None:
    assert "nonsense" in refused(invoke("generate", "x", "--device", "nonsense"))


def test_refuses_a_prompt_beyond_the_context(in_memory: Callable[..., None]) -> None:
    in_memory()
    for method in ("none", "quantized"):
        line = refused(invoke("generate", "word " * 8300, "--method", method))
        assert "8192" in line
        assert "shorten" in line


def test_refuses_chat_options_without_a_template(
    smollm2: loading.Loaded, monkeypatch: pytest.MonkeyPatch, in_memory: Callable[..., None]
) -> None:
    in_memory()
    monkeypatch.setattr(smollm2.tokenizer, "chat_template", None)
    assert "--chat" in refused(invoke("generate", "x", "--chat"))
    assert "--system 's'" in refused(invoke("generate", "x", "--system", "s"))


def test_an_unexpected_error_is_one_line_and_its_traceback_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise RuntimeError("the disk\nis on fire")

    monkeypatch.setattr(loading, "load", load)
    short = invoke("generate", "x")
    assert short.exit_code == 1
    assert short.stderr == "trimtab: error: unexpected RuntimeError: the disk is on fire (--debug shows where)\n"
    long = invoke("generate", "x", "--debug")
    assert long.exit_code == 1
    assert "Traceback" in long.stderr
    assert long.stderr.splitlines()[-1] == "trimtab: error: unexpected RuntimeError: the disk is on fire"


def test_checks_cover_what_the_method_refuses() -> None:
    for settings in ({"bits": 7}, {"mode": "x"}, {"drafter": "x"}, {"activation_bits": 3}, {"window": 0}):
        with pytest.raises(trimtab.InputError):
            QuantizedVerification(**settings)  # type: ignore[arg-type]
        with pytest.raises(trimtab.InputError):
            check_method("quantized", settings | ({"mode": "lossless"} if "window" in settings else {}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("ead", "--small", "smollm2-135m", "--threshold", "1.5", "--decay", "0.8"),
            ("large_share", "switches", "cost"),
        ),
        (("fusion", "--small-base", "smollm2-135m", "--expert", "smollm2-135m"), ("alpha", "divergence", "target")),
        (("fusion", "--small-base", "smollm2-135m", "--expert", "smollm2-135m", "--alpha", "0.5"), ("alpha",)),
        (("steer", "--base", "smollm2-135m", "--gamma", "0.5", "--plausibility", "0.1"), ("gamma", "forward_tokens")),
        (("steer", "--base", "smollm2-135m", "--negative", "Red.", "--negative", "Blue."), ("eta", "negatives")),
    ],
    ids=lambda value: " ".join(value[:4]),
)
def test_every_method_has_its_statistics(
    in_memory: Callable[..., None], options: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    in_memory()
    done = invoke("generate", "Name a colour.", "--json", "--max-new-tokens", "6", "--method", *options)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["method"] == options[0]
    assert set(expected) <= set(result["stats"])
    if options[0] == "fusion":
        assert len(result["stats"]["alpha"]) == result["new_tokens"]
        assert options[-1] != "0.5" or result["stats"]["alpha"] == [[0.5]] * result["new_tokens"]
    if "--negative" in options:
        assert result["stats"]["negatives"] == 2
        assert result["stats"]["forward_tokens"]["negatives"] > 0
    shown = invoke("generate", "Name a colour.", "--max-new-tokens", "6", "--method", *options)
    assert shown.stdout.strip() == result["text"].strip()
    assert {"ead": "of tokens", "fusion": "alpha", "steer": "gamma"}[options[0]] in shown.stderr


# -- what is generated ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """`--method none --json` in a process of its own."""
    done = run("generate", PROMPT, *MODEL, "--method", "none", "--json", "--max-new-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_json_of_plain_generate(plain: dict[str, Any]) -> None:
    assert plain["model"] == "smollm2-135m"
    assert plain["method"] == "none"
    assert plain["stats"] is None
    assert plain["new_tokens"] == len(plain["token_ids"]) == 20
    assert plain["prompt_tokens"] > 20  # the chat template adds to the text's own
    assert plain["tokens_per_second"] == pytest.approx(20 / plain["seconds"], rel=0.01)


@pytest.mark.slow
def test_lossless_streams_the_text_of_plain_generate(plain: dict[str, Any]) -> None:
    done = run("generate", PROMPT, *MODEL, "--mode", "lossless", "--max-new-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain["text"] + "\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("20 tokens in ")
    for part in ("tok/s", "acceptance", "kept", "prefill", "low-bit", "full"):
        assert part in line
    assert len(line) <= 120


@pytest.mark.slow
def test_json_of_quantized(plain: dict[str, Any], in_memory: Callable[..., None]) -> None:
    in_memory()
    done = invoke("generate", PROMPT, "--json", "--mode", "lossless", "--max-new-tokens", "20")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == set(plain)
    assert result["token_ids"] == plain["token_ids"]
    assert result["text"] == plain["text"]
    assert result["stats"]["new_tokens"] == 20
    assert result["stats"]["passes"]["full"] > 0
    # what is measured is generation: the method's own clock and little more
    assert 0 < result["seconds"] - result["stats"]["seconds"]["total"] < 1


def test_quantized_streams_to_stdout(in_memory: Callable[..., None]) -> None:
    in_memory()
    done = invoke("generate", PROMPT, "--bits", "16", "--max-new-tokens", "8")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr.startswith("8 tokens in ")


@pytest.mark.parametrize("method", [("--method", "none"), ("--bits", "16")])
def test_seed_repeats_and_greedy_is_the_default(method: tuple[str, str], in_memory: Callable[..., None]) -> None:
    in_memory()

    def ids(*options: str) -> list[int]:
        done = invoke("generate", "A word:", "--json", *method, "--max-new-tokens", "12", *options)
        assert done.exit_code == 0, done.stderr
        tokens: list[int] = json.loads(done.stdout)["token_ids"]
        return tokens

    first = ids("--temperature", "1.5", "--seed", "1")
    assert first == ids("--temperature", "1.5", "--seed", "1")
    assert first != ids("--temperature", "1.5", "--seed", "2")
    assert ids() == ids("--temperature", "0", "--top-p", "0.5", "--seed", "4")
    assert ids() == ids("--temperature", "1", "--top-k", "1")


@pytest.mark.parametrize("method", [("--method", "none"), ("--bits", "16")])
def test_stop_ends_with_its_text(method: tuple[str, str], in_memory: Callable[..., None]) -> None:
    in_memory()
    done = invoke("generate", "Count to ten.", "--json", *method, "--stop", "zzz", "--stop", "2", "--stop", ".")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["new_tokens"] < 128
    assert "2" in result["text"] or "." in result["text"]


def test_prompt_sources_and_chat_template(tmp_path: Path, in_memory: Callable[..., None]) -> None:
    in_memory()
    common = ("--method", "none", "--json", "--max-new-tokens", "1")
    file = tmp_path / "prompt.txt"
    file.write_text("Hello\n")

    def tokens(*args: str, input: str | None = None) -> int:
        done = invoke("generate", *args, *common, input=input)
        assert done.exit_code == 0, done.stderr
        count: int = json.loads(done.stdout)["prompt_tokens"]
        return count

    bare = tokens("Hello", "--no-chat")
    assert bare == 1
    assert tokens("-", "--no-chat", input="Hello\n") == bare
    assert tokens("--prompt-file", str(file), "--no-chat") == bare
    chat = tokens("Hello")
    assert chat == tokens("Hello", "--chat") > bare
    assert tokens("Hello", "--system", "Answer in one word, in French, without any further remark at all.") != chat


def test_context_bounds_what_is_generated(in_memory: Callable[..., None], tiny_llama: PreTrainedModel) -> None:
    # the tiny vocabulary has the ids of the tokenizer's special tokens only
    in_memory(tiny_llama)
    prompt = "<|endoftext|>" * 508
    for method in (("--method", "none"), ("--bits", "16")):
        done = invoke("generate", prompt, "--no-chat", "--json", *method)
        assert done.exit_code == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["prompt_tokens"] == 508
        assert result["new_tokens"] == 4


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process")
def test_ctrl_c_is_quiet() -> None:
    args = (*COMMAND, "generate", PROMPT, *MODEL, "--method", "none", "--max-new-tokens", "4000")
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""


def test_summary_is_one_short_line() -> None:
    stats = VerificationStats(new_tokens=1000, reverified=900, confirmed=880, row_passes=400, row_tokens=960)
    stats.passes = {"prefill": 1, "low_bit": 1400, "full": 1120}
    stats.seconds = {"prefill": 1.0, "low_bit": 12.0, "full": 10.0, "total": 25.0}
    line = summary(1000, 25.5, stats)
    assert line == (
        "1000 tokens in 25.50 s, 39.2 tok/s | acceptance 2.40, 98% kept | "
        "passes: prefill 4%, 1400 low-bit 48%, 1120 full 40% of time"
    )
    assert summary(10, 2.0, None) == "10 tokens in 2.00 s, 5.0 tok/s"


def test_sampling_options_reach_generate() -> None:
    assert check_sampling(None, None, None, None, None) == {"do_sample": False}
    assert check_sampling(0.0, 5, 0.9, None, 1.2) == {"repetition_penalty": 1.2, "do_sample": False}
    assert check_sampling(0.7, 5, None, 0.1, None) == {"do_sample": True, "temperature": 0.7, "top_k": 5, "min_p": 0.1}
