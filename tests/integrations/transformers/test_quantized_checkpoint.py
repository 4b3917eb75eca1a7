"""Directories of quantised models: the round trip, what decodes them, and damage."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from typer.testing import CliRunner

import trimtab
from tests.conftest import tiny
from trimtab import InputError, LowBitModel, QuantizedVerification, Runner, load_quantized, quantize_, save_quantized
from trimtab.cli import app
from trimtab.integrations.transformers.decoder import LeanDecoder
from trimtab.integrations.transformers.loading import Loaded
from trimtab.integrations.transformers.module_forward import ModuleForward
from trimtab.integrations.transformers.runner import forward_of
from trimtab.integrations.transformers.state import SequenceState
from trimtab.kernels.quantized_linear import Int8Linear, QuantizedLinear

IDS = torch.arange(1, 60)[None]
FORMATS = ["w8a8", "w8a16", "w4a16"]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_round_trip(tmp_path: Path, family: str, format: Any) -> None:
    model = quantize_(tiny(family), format, group=32)
    expected = logits(model)  # 4-bit layers are in the operator's layout by now
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(logits(loaded), expected)
    assert all(not tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("skip", [(), ("lm_head",)])
def test_heads(tmp_path: Path, tied: bool, skip: tuple[str, ...]) -> None:
    model = tiny("llama")
    model.config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()
    quantize_(model, skip=skip)
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path)
    assert isinstance(loaded.lm_head, QuantizedLinear) == (not skip)
    assert torch.equal(logits(loaded), logits(model))
    if tied and skip:
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    model = tiny("llama")
    quantize_(model, "w8a16", skip=("mlp", "lm_head"))
    quantize_(model, "w4a16", group=32, skip=("gate_proj", "lm_head"))
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path)
    assert type(loaded.model.layers[0].mlp.gate_proj) is nn.Linear
    assert torch.equal(logits(loaded), logits(model))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    def files(place: str, model: PreTrainedModel) -> dict[str, bytes]:
        save_quantized(model, tmp_path / place)
        return {file.name: file.read_bytes() for file in sorted((tmp_path / place).iterdir())}

    first = files("a", quantize_(tiny("llama"), "w4a16", group=32))
    assert set(first) == {"config.json", "generation_config.json", "model.safetensors"}
    assert files("b", quantize_(tiny("llama"), "w4a16", group=32)) == first
    again = load_quantized(tmp_path / "a")
    logits(again)
    forward_of(again)  # which puts layers side by side
    assert files("c", again) == first
    assert files("a", again) == first
    assert str(tmp_path) not in (tmp_path / "c" / "config.json").read_text()


@pytest.mark.parametrize("format", FORMATS)
def test_dtypes(tmp_path: Path, format: Any) -> None:
    model = quantize_(tiny("llama").to(torch.bfloat16), format, group=32)
    model.model.rotary_emb = tiny("llama").model.rotary_emb  # frequencies stay in float32 in what transformers loads
    save_quantized(model, tmp_path)
    assert load_quantized(tmp_path).dtype == torch.bfloat16
    assert torch.equal(logits(load_quantized(tmp_path)), logits(model))
    wide = load_quantized(tmp_path, dtype=torch.float32)
    assert {tensor.dtype for tensor in wide.parameters()} == {torch.float32}
    assert logits(wide).dtype == torch.float32


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@torch.no_grad()
def test_the_lean_forward_computes_what_the_modules_do(family: str, format: Any) -> None:
    model = quantize_(tiny(family), format, group=32)
    quantize_(model, "w8a8", skip=()) if format == "w4a16" else None  # a head of another format
    before = logits(model)
    held = sum(buffer.untyped_storage().nbytes() for buffer in model.buffers())
    lean = forward_of(model)
    assert isinstance(lean, LeanDecoder)
    found = [Runner(forward, SequenceState(1), model.device).prefill([IDS[0].tolist()]) for forward in (
        lean, ModuleForward(model))]  # fmt: skip
    # the order of sums decides how activations round to 8 bits
    assert (found[0] - found[1]).double().square().mean().sqrt() / found[1].double().std() < 0.03
    assert torch.equal(logits(model), before)
    if format != "w4a16":
        layers = [layer.self_attn.q_proj.weight for layer in model.model.layers]
        pieces = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in layers}
        assert sum(pieces.values()) < held
        whole = [forward_of(model).weights.layers[0].qkv.weight for _ in range(2)]  # type: ignore[attr-defined]
        assert whole[0].data_ptr() == whole[1].data_ptr() == layers[0].data_ptr()  # no second copy


@pytest.mark.parametrize("mode", ["quantized", "lossless"])
@pytest.mark.parametrize("bits", [16, 8])
def test_quantized_verification_takes_the_model_as_it_is(bits: int, mode: Any) -> None:
    model = quantize_(tiny("llama"), "w8a16")
    prompt = torch.tensor([[1, 5, 9, 5, 9, 5], [3, 4, 3, 4, 3, 4]])
    verification = QuantizedVerification(bits=bits, mode=mode)
    output = model.generate(prompt, custom_generate=verification, max_new_tokens=24, do_sample=False)
    plain = model.generate(prompt, max_new_tokens=24, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert torch.equal(output, plain)
    if bits == 8:
        made = verification.prepare(model)
        assert made is not None
        assert made.linears == {}
        assert isinstance(LowBitModel.quantize(model).forward, LeanDecoder)


@pytest.mark.slow
def test_load_and_the_command_line(smollm2: Loaded, tmp_path: Path) -> None:
    model = quantize_(copy.deepcopy(smollm2.model), "w8a16")
    save_quantized(model, tmp_path, smollm2.tokenizer)
    loaded, tokenizer = trimtab.load(tmp_path, device="cpu")
    assert isinstance(loaded.model.layers[0].mlp.up_proj, Int8Linear)
    ids = tokenizer("The largest moon of Saturn is", return_tensors="pt")
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = tokenizer.decode(loaded.generate(**ids, **settings)[0, ids.input_ids.shape[1] :])
    arguments = ["The largest moon of Saturn is", "--model", str(tmp_path), "--no-chat", "--max-new-tokens", "12"]
    result = CliRunner().invoke(app, ["generate", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] == expected


def test_several_files(tmp_path: Path) -> None:
    model = quantize_(tiny("llama"), "w4a16", group=32)
    save_quantized(model, tmp_path)
    whole = tmp_path / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    places = {}
    for part in range(3):
        names = sorted(tensors)[part::3]
        file = f"model-0000{part + 1}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names}, tmp_path / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert torch.equal(logits(load_quantized(tmp_path)), logits(model))
    name = "model.layers.1.mlp.up_proj.packed"
    change = {other: tensors[other] for other in sorted(tensors) if places[other] == places[name]}
    save_file(change | {name: torch.zeros(1)}, tmp_path / places[name], metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{places[name]}: tensor {name} is float32"):
        load_quantized(tmp_path)


def test_models_in_full_precision_are_refused(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="no linear in low bits"):
        save_quantized(tiny_llama, tmp_path)
    tiny_llama.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no quantization_config"):
        load_quantized(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_quantized(quantize_(tiny("llama"), "w4a16", group=32), tmp_path)
    return tmp_path


def edit(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "hqq"}, "'hqq': trimtab reads trimtab, compressed-tensors, gptq, awq"),
        ({"version": 2}, "version 2"),
        ({"modules": {"lm_head": "w3"}}, "formats"),
        ({"modules": {}}, "no linear in low bits"),
        ({"modules": {"model.norm": "w8a8"}}, "no linear"),
        ({"modules": {"model.layers.0.mlp.up_proj": "w8a8"}}, "lacks 13 weights"),
    ],
)
def test_configurations(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(InputError, match=message) as refused:
        load_quantized(saved)
    assert str(saved) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_module_of_another_format_than_its_tensors(saved: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    modules = json.loads((saved / "config.json").read_text())["quantization_config"]["modules"]
    edit(saved, modules=modules | {name: "w8a8"})
    with pytest.raises(InputError, match=f"no tensor {name}.weight: {name} has 64 input and 96 output channels"):
        load_quantized(saved)


def test_damage(saved: Path) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors is no safetensors file or a damaged one"):
        load_quantized(saved)
    file.unlink()
    with pytest.raises(InputError, match=r"neither model\.safetensors nor"):
        load_quantized(saved)
    index = saved / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(InputError, match="no index"):
        load_quantized(saved)
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(InputError, match="model-00001-of-00002"):
        load_quantized(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        load_quantized(saved)
    with pytest.raises(InputError, match="has no config"):
        load_quantized(saved / "nowhere")
