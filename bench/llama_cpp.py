"""trimtab beside llama.cpp on one GGUF file: `trimtab ab` with llama.cpp's own server as side A.

    pip install xllamacpp
    python bench/llama_cpp.py --json bench/results/llama_cpp.json

llama.cpp computes with the file's own weights, trimtab with what transformers reads from it and quantises; both use
`--threads`. The server keeps no prompt from one request to the next. Prompts, sides that take turns and
intervals are those of docs/ab.md; needs an otherwise idle machine.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from trimtab import InputError
from trimtab.integrations.transformers.embedded import MODELS

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 4096


def main(
    gguf: Annotated[Path | None, typer.Option(help="The file; by default that of the embedded smollm2-135m.")] = None,
    setup: Annotated[str, typer.Option(help="trimtab's side, as for `trimtab ab`.")] = "quantized:bits=8",
    prompts: Annotated[Path, typer.Option(help="JSONL.")] = ROOT / "bench/data/spec_bench_60.jsonl",
    limit: Annotated[int, typer.Option(help="Prompts.")] = 12,
    max_new_tokens: Annotated[int, typer.Option(help="For each.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads of either side.")] = os.cpu_count() or 1,
    output: Annotated[Path | None, typer.Option("--json", help="Where the comparison goes.")] = None,
) -> None:
    """Compare tokens per second."""
    if find_spec("xllamacpp") is None:
        raise InputError("xllamacpp is missing: pip install xllamacpp")
    file = _embedded() if gguf is None else gguf
    context = multiprocessing.get_context("spawn")
    line, end = context.Pipe()
    server = context.Process(target=serve, args=(str(file), threads, end), daemon=True)
    server.start()
    end.close()
    try:
        url = line.recv()
        command = [sys.executable, "-m", "trimtab.cli", "ab", "--model", str(file), "--threads", str(threads)]
        command += ["--a", f"none:engine={url}/v1,model={file}", "--b", setup, "--prompts", str(prompts)]
        command += ["--limit", str(limit), "--max-new-tokens", str(max_new_tokens)]
        command += [] if output is None else ["--json", str(output)]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        raise typer.Exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode)
    except EOFError as error:
        raise InputError(f"llama.cpp's server did not start on {file}: its log is above") from error
    finally:
        line.close()  # upon which the server ends
        server.join(30)


def serve(file: str, threads: int, line: Connection[Any, Any]) -> None:
    """llama.cpp's server, until the other end of the line is closed."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = file, CONTEXT, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_prompt = False
    server = xllamacpp.Server(params)
    line.send(server.listening_address)
    try:
        line.recv()
    except EOFError:
        del server


def _embedded() -> Path:
    model = MODELS["smollm2-135m"]
    ((package, name),) = model.parts
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the embedded smollm2-135m is missing: {model.install_command}, or give --gguf")
    return Path(spec.submodule_search_locations[0]) / name


if __name__ == "__main__":
    typer.run(main)
