"""Write trimtab/data/temperature_scores.json from the paper's measurements, assets/temperature_eval.jsonl of its code.

python bench/temperature/make_table.py temperature_eval.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: the checkout stands in for this directory, whose modules are read as `bench.*`.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from trimtab.decoding.score_table import DEFAULT_TABLE
from trimtab.decoding.temperature import ABILITIES

PARAMETERS = {
    "Llama-2-7b-chat-hf": 6.7e9,
    "Llama-2-13b-chat-hf": 13e9,
    "Llama-2-70b-chat-hf": 69e9,
    "Llama-3.2-1B-Instruct": 1.24e9,
    "Llama-3.2-3B-Instruct": 3.2e9,
    "Meta-Llama-3-8B-Instruct": 8e9,
    "Meta-Llama-3-70B-Instruct": 70.6e9,
    "Mistral-7B-Instruct-v0.2": 7.2e9,
    "Mixtral-8x7B-Instruct-v0.1": 46.7e9,
    "Phi-3.5-mini-instruct": 3.8e9,
    "Qwen2.5-1.5B-Instruct": 1.54e9,
    "Qwen2.5-3B-Instruct": 3.1e9,
}


def main(source: Path) -> None:
    measured = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        measured[row["model_name"], row["category"], float(row["temperature"])] = float(row["accuracy"])
    grid = sorted({temperature for _, _, temperature in measured})
    models = {
        model: {
            "parameters": parameters,
            "scores": {ability: [measured[model, ability, t] for t in grid] for ability in ABILITIES},
        }
        for model, parameters in PARAMETERS.items()
    }
    head = {
        "source": "arXiv 2506.07295, https://github.com/DobricLilujun/temperature_eval, assets/temperature_eval.jsonl",
        "licence": "MIT, see temperature_scores.LICENSE",
        "temperatures": grid,
    }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(model)}" for name, model in models.items())
    DEFAULT_TABLE.write_text(
        json.dumps(head, indent=1)[:-2] + f',\n "models": {{\n{lines}\n }}\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
