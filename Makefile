# Two commands do everything: `make demo` and `make test`. Each sets itself up; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One heavy process at a time on one machine: an engine, a Ray cluster or a bench slows the others to a crawl.
LOCK := flock $(VENV)/heavy.lock
TORCH := torch==2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
TASK ?= jobs/configs/triage.toml
SEEDS ?= 34
export PYTHONUNBUFFERED := 1
export VLLM_NO_USAGE_STATS := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test soak lint serve clean help

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.installed  ## virtual environment, dependencies, demo model
	@$(BIN)/python -m jobs.demo_model

# With an NVIDIA GPU: the CUDA build of vllm. Without: the CPU builds; torch's from the configured index where
# that has it, else from PyTorch's own. PyPI's torchvision, torchaudio and torchcodec do not import beside a CPU
# torch, and then neither does vllm: this project is text only, so they go.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "raydistill needs Python 3.11 to 3.13; run make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then \
	  set -ex; $(BIN)/python -m pip install -q -e '.[gpu,dev]'; \
	else \
	  set -ex; \
	  $(BIN)/python -m pip install -q --no-deps '$(TORCH)+cpu' \
	    || $(BIN)/python -m pip install -q --no-deps '$(TORCH)+cpu' --index-url $(TORCH_INDEX); \
	  $(BIN)/python -m pip install -q -e '.[cpu,dev]'; \
	  $(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec; \
	fi
	@touch $@

demo: setup  ## distil the demo task end to end and print the report
	$(LOCK) $(BIN)/python -m jobs.distill $(TASK)

serve: setup  ## serve the result in the foreground
	$(BIN)/python -m jobs.serve $(TASK)

test: setup  ## unit tests and one end-to-end test over the real parts
	$(LOCK) $(BIN)/python -m pytest tests -n 2

soak: setup  ## hours: SEEDS runs of create_data in which everything dies once, hundreds of wrong versions and of swaps
	$(LOCK) $(BIN)/python -m tests.chaos.soak --seeds $(SEEDS)
	$(LOCK) $(BIN)/python -m tests.chaos.soak --seeds 3 --teacher vllm --results soak-vllm.json
	RAYDISTILL_MUTANTS=820 $(BIN)/python -m pytest tests/registry/test_mutants.py
	RAYDISTILL_SWAP_SEEDS=100 $(BIN)/python -m pytest tests/serving/test_swaps.py
	RAYDISTILL_MIXED_BATCHES=1000 $(LOCK) $(BIN)/python -m pytest tests/engine/test_engine_lora.py tests/engine/test_engine_bfloat16.py
	RAYDISTILL_PLAIN_SERVERS=1 $(LOCK) $(BIN)/python -m pytest tests/training/test_plain_server.py
	RAYDISTILL_SWAPS=100 $(LOCK) $(BIN)/python -m pytest tests/jobs/test_swaps_under_load.py tests/jobs/test_killed_under_load.py

lint: $(VENV)/.installed  ## ruff, ruff format, pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:  ## remove what demo and tests made; the environment and the demo model stay
	rm -rf .raydistill .pytest_cache .ruff_cache
