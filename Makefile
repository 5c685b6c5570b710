# Every target sets up what it needs. Needs Python 3.11+ and make, nothing else.
#   make demo          the whole loop on this machine        make test    everything that keeps it true
#   make check         format, lint, types, layers           make smoke   examples and README, briefly
# PYTHON=python3.12 chooses the interpreter. TORCH_INDEX=https://download.pytorch.org/whl/cpu fetches PyTorch's small
# CPU build where the default package index offers only the large CUDA one.
PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION := 2.13.0
TORCH_INDEX ?=
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?= --short
FUZZ_ARGS ?=
SOAK_ARGS ?=
MUTANT_ARGS ?=

BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --progress-bar off
READY := $(VENV)/.edgewise-ready
# One thread per process: the processes of a fleet share the cores.
THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test check bench bench-peers chaos chaos-short chaos-cells chaos-mutants fuzz soak smoke no-torch docs clean setup
.DEFAULT_GOAL := test

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Edgewise needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true). Run: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "setup 1/4  virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup 2/4  torch $(TORCH_VERSION) (first and alone, so that nothing else chooses its build)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH_VERSION)
	@echo "setup 3/4  pinned requirements"
	@$(PIP) -r requirements.lock
	@echo "setup 4/4  edgewise itself"
	@$(PIP) --no-deps -e .
	@touch $@

demo: $(READY)
	@$(THREADS) $(BIN)/edgewise demo $(DEMO_ARGS)

test: $(READY)
	@$(THREADS) $(BIN)/python -m tests.run_in_parts $(TEST_ARGS)

check: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY)
	@set -e; for file in benchmarks/[a-z]*.py; do name=$$(basename $$file .py); \
	  grep -q '__main__' $$file && test $$name != against || continue; \
	  echo "== $$name"; $(THREADS) $(BIN)/python -m benchmarks.$$name $(BENCH_ARGS); done

# Peers live in environments of their own under .venvs/; they are never a dependency of ours.
bench-peers: $(READY)
	@set -e; for file in benchmarks/peers/requirements-*.txt; do \
	  name=$$(basename $$file .txt); name=$${name#requirements-}; echo "peer $$name"; \
	  test -x .venvs/$$name/bin/python || $(PYTHON) -m venv .venvs/$$name; \
	  PIP_DISABLE_PIP_VERSION_CHECK=1 .venvs/$$name/bin/python -m pip install --quiet --progress-bar off -r $$file; done

chaos: $(READY)
	@$(THREADS) EDGEWISE_KILL_STRIDE=1 $(BIN)/python -m pytest -m live $(TEST_ARGS) tests
	@$(THREADS) EDGEWISE_KILL_STRIDE=1 $(BIN)/python -m pytest $(TEST_ARGS) tests/fleet/test_kills.py

# Bytes that strangers, users or damaged disks may give: 10,000,000 inputs, resumed by a second call. FUZZ_ARGS='--seconds 60'.
fuzz: $(READY)
	@$(THREADS) $(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

# 10,000 rounds and 1,000,000 requests on real processes; what each process grows by. SOAK_ARGS='--minutes 3'.
soak: $(READY)
	@$(THREADS) $(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

# What of all this fits into five minutes: 300 campaigns in virtual time, 3 of real processes, fuzz and soak cut by time.
chaos-short: $(READY)
	@$(BIN)/edgewise chaos --campaigns 300
	@$(THREADS) $(BIN)/edgewise chaos --live --campaigns 3
	@$(THREADS) $(BIN)/python -m tests.fuzz --seconds 30
	@$(THREADS) $(BIN)/python -m benchmarks.soak --short --minutes 0.7

# 10,000 campaigns in virtual time, and the table of faults and phases: none that can meet is to be missing.
chaos-cells: $(READY)
	@$(BIN)/edgewise chaos --campaigns 10000 --table

# 500 campaigns of real processes; those in the file have been run, a second call goes on. LIVE_ARGS='--from 500'.
chaos-live: $(READY)
	@mkdir -p chaos-out
	@$(THREADS) TMPDIR="$(CURDIR)/chaos-out" $(BIN)/edgewise chaos --live --campaigns 500 --kept tests/chaos/live_campaigns.jsonl $(LIVE_ARGS)
	@COLUMNS=100 $(BIN)/python docs/reference/generate.py

# Plants each bug of tests/chaos/mutants in a copy of the package and has campaigns hunt it; prints the score. Resumed by a second call.
chaos-mutants: $(READY)
	@$(BIN)/python -m tests.chaos.run_mutants --kept chaos-out/mutants.jsonl $(MUTANT_ARGS)

smoke: $(READY)
	@$(THREADS) $(BIN)/python -m pytest $(TEST_ARGS) tests/docs $(wildcard tests/examples)

# Proves that a node without torch profiles, plans and serves: the lock has no torch line, so this environment has none.
no-torch: $(READY)
	@echo "no-torch 1/2  an environment without torch in .venvs/no-torch"
	@test -x .venvs/no-torch/bin/python || $(PYTHON) -m venv .venvs/no-torch
	@PIP_DISABLE_PIP_VERSION_CHECK=1 .venvs/no-torch/bin/python -m pip install --quiet --progress-bar off -r requirements.lock
	@PIP_DISABLE_PIP_VERSION_CHECK=1 .venvs/no-torch/bin/python -m pip install --quiet --progress-bar off --no-deps -e .
	@echo "no-torch 2/2  profile, plan, serve and infer there"
	@$(THREADS) EDGEWISE_NO_TORCH_PYTHON=$(CURDIR)/.venvs/no-torch/bin/python $(BIN)/python -m pytest tests/live/test_no_torch.py $(TEST_ARGS)

# Regenerates what is printed from the code: the CLI reference.
docs: $(READY)
	@COLUMNS=100 $(BIN)/python docs/reference/generate.py

clean:
	rm -rf $(VENV) .venvs demo-report build dist bench-out fuzz-out soak-out chaos-out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
