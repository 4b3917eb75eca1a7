from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trimtab.cli import app
from trimtab.errors import InputError
from trimtab.integrations.vllm.composed_directory import ARCHITECTURE, KEY, compose_fusion, read_composition


def model(path: Path, vocab: int = 97, positions: int = 512, ids: dict[str, int] | None = None) -> Path:
    """A directory with what compose reads of a model, its weights empty."""
    path.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "max_position_embeddings": positions}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": ids or {"a": 0, "b": 1}}}))
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return {name: model(tmp_path / name) for name in ("large", "base", "one", "two")}


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, ["compose", *map(str, args)])


def fusion(models: dict[str, Path], output: Path, *more: object) -> Result:
    return invoke(
        "fusion", "--target", models["large"], "--base", models["base"], "--expert", models["one"], "-o", output, *more
    )


def refused(result: Result) -> str:
    """The one line of an error."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    return line


def test_fusion_is_a_directory_of_links(models: dict[str, Path], tmp_path: Path) -> None:
    result = fusion(models, tmp_path / "out", "--expert", models["two"], "--alpha", "dynamic")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURE]
    composition = read_composition(config[KEY])
    assert composition.architectures == ("LlamaForCausalLM",)
    assert composition.members == ("trimtab_base", "trimtab_expert_a", "trimtab_expert_b")
    assert composition.strength is None
    assert [(out / name).resolve() for name in composition.members] == [models[n] for n in ("base", "one", "two")]
    assert (out / "model.safetensors").is_symlink()
    assert (out / "tokenizer.json").resolve() == models["large"] / "tokenizer.json"
    assert "model_max_length" not in config


def test_steer_and_fixed_strengths(models: dict[str, Path], tmp_path: Path) -> None:
    result = invoke(
        "steer", "--expert", models["one"], "--base", models["base"], "--gamma", "0.3", "-o", tmp_path / "s"
    )
    assert result.exit_code == 0, result.output
    composition = read_composition(json.loads((tmp_path / "s" / "config.json").read_text())[KEY])
    assert (composition.method, composition.strength, composition.members) == ("steer", 0.3, ("trimtab_base",))
    assert fusion(models, tmp_path / "f", "--alpha", "0.7").exit_code == 0
    assert read_composition(json.loads((tmp_path / "f" / "config.json").read_text())[KEY]).strength == 0.7


def test_a_shorter_member_bounds_the_length(models: dict[str, Path], tmp_path: Path) -> None:
    models["base"] = model(tmp_path / "short", positions=256)
    assert fusion(models, tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_max_length"] == 256


def test_an_empty_directory_may_exist(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert fusion(models, tmp_path / "out").exit_code == 0
    assert "exists: give a new directory" in refused(fusion(models, tmp_path / "out"))


def test_bad_input_is_one_line_and_nothing_is_written(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--alpha is 'much': give 'dynamic' or a number" in refused(fusion(models, out, "--alpha", "much"))
    assert "--alpha is -1: give" in refused(fusion(models, out, "--alpha", "-1"))
    assert "--alpha-max is 0" in refused(fusion(models, out, "--alpha-max", "0"))
    assert "--active is 'some'" in refused(fusion(models, out, "--active", "some"))
    lone = invoke("fusion", "--target", models["large"], "--base", models["base"], "-o", out)
    assert "--expert is missing" in refused(lone)
    assert "--base" in refused(invoke("fusion", "--target", models["large"], "-o", out))
    steer = ("steer", "--expert", models["one"], "-o", out)
    assert "--gamma is -0.5" in refused(invoke(*steer, "--base", models["base"], "--gamma", "-0.5"))
    assert "--base is" in refused(invoke(*steer, "--base", tmp_path / "nowhere"))
    assert not out.exists()


def test_models_that_do_not_fit_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    wide = models | {"one": model(tmp_path / "wide", vocab=97 + 513)}
    assert "--expert has 610" in refused(fusion(wide, out))
    other = models | {"base": model(tmp_path / "other", ids={"a": 1, "b": 0})}
    assert "--base has token 'a' as id 1 and --target as id 0" in refused(fusion(other, out))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json cannot be read" in refused(fusion(models | {"one": empty}, out))
    (models["two"] / "model.safetensors").unlink()
    assert "holds no weights" in refused(fusion(models | {"one": models["two"]}, out))
    assert fusion(models, tmp_path / "composed").exit_code == 0
    assert "composed already" in refused(fusion(models | {"large": tmp_path / "composed"}, out))
    assert not out.exists()


def test_what_a_hand_broke_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    compose_fusion(tmp_path / "out", models["large"], models["base"], [models["one"]], alpha=1.0)
    good = json.loads((tmp_path / "out" / "config.json").read_text())[KEY]
    for change in (
        {"format": 2},
        {"method": "sum"},
        {"strength": -1},
        {"members": []},
        {"alpha_max": "x"},
        {"active": 1},
    ):
        with pytest.raises(InputError, match=r"'trimtab' in config\.json cannot be read"):
            read_composition(good | change)
    for missing in (None, {}, {key: value for key, value in good.items() if key != "strength"}):
        with pytest.raises(InputError, match="cannot be read"):
            read_composition(missing)


def test_a_relative_output_and_relative_models(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compose_fusion(Path("deep/out"), Path("large"), Path("base"), [Path("one")], alpha=None)
    assert (tmp_path / "deep/out/trimtab_base/config.json").is_file()


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from trimtab.cli import app; "
        "r = CliRunner().invoke(app, ['compose', 'fusion', '--help']); assert r.exit_code == 0; "
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
