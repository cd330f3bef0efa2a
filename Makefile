# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
.PHONY: help setup setup-ops demo test test-slow test-classic bench bench-full bench-gpu docs lint clean

.DEFAULT_GOAL := help
PYTEST_ARGS ?=
BENCH_ARGS ?=
# two files at a time: half an hour instead of one, on two cores; `-n 0` in PYTEST_ARGS undoes it
IN_PARALLEL := -n 2 --dist loadfile

ifdef MMDENSE_PYTHON
# An environment that is there already: nothing is installed into it.
PY := $(abspath $(shell command -v '$(MMDENSE_PYTHON)'))
$(if $(PY),,$(error MMDENSE_PYTHON=$(MMDENSE_PYTHON) is not a program))
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
setup setup-ops: ;
else
PY := $(CURDIR)/.venv/bin/python
unexport PYTHONPATH
setup: ; @requirements/setup_env.sh
setup-ops: ; @requirements/setup_env.sh --ops
endif

# What says `python` or `torchrun` gets those of the same environment.
export PATH := $(patsubst %/,%,$(dir $(PY))):$(PATH)

help:
	@echo 'make demo       set up, pretrain DenseCL on a few photographs, draw a picture'
	@echo 'make test       set up with mmcv compiled, run every test but the slow ones'
	@echo 'make test-slow  the slow ones'
	@echo 'make test-classic  make test under the classic line of OpenMMLab, PyTorch 2.1: .venv-classic'
	@echo 'make bench      ten minutes of benchmarks beside other packages: docs/benchmarks.md; bench-full'
	@echo '                also what takes longer'
	@echo 'make bench-gpu  checks and benchmarks on one GPU, eight minutes; also docs/benchmarks.md'
	@echo 'make docs       the documentation as pages: docs/_build/html/index.html'
	@echo 'make lint       ruff, through pre-commit'
	@echo 'make setup      only the set-up: .venv'
	@echo 'make clean      remove .venv, .venv-classic, .venv-bench, .venv-docs and what builds and tests left'
	@echo 'PYTHON=python3.11 makes .venv; MMDENSE_PYTHON=/path/to/python is used instead of .venv.'
	@echo "PYTEST_ARGS='-k name' goes to pytest, BENCH_ARGS='--only step' to benchmarks/run.py; MMDENSE_DATA is the folder of test data."

demo: setup
	$(PY) tools/demo.py

test: setup-ops
	$(PY) -m pytest tests -m 'not slow' $(IN_PARALLEL) $(PYTEST_ARGS)

test-slow: setup-ops
	$(PY) -m pytest tests -m slow $(PYTEST_ARGS)

# Always in an environment of its own.
test-classic: override PY := $(CURDIR)/.venv-classic/bin/python
test-classic: export PATH := $(CURDIR)/.venv-classic/bin:$(PATH)
test-classic:
	@requirements/setup_env.sh --classic --ops
	$(PY) -m pytest tests -m 'not slow' $(IN_PARALLEL) $(PYTEST_ARGS)

# What only they need is beside the environment, not in it.
bench: BENCH := run.py
bench-full: BENCH := run.py --full
bench-gpu: BENCH := gpu.py
bench bench-full bench-gpu: setup .venv-bench/installed
	PYTHONPATH=$(CURDIR)/.venv-bench$(if $(MMDENSE_PYTHON),:$(PYTHONPATH)) \
		$(PY) benchmarks/$(BENCH) $(BENCH_ARGS)

.venv-bench/installed: requirements/bench.txt | setup
	rm -rf .venv-bench
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-bench -r $<
	touch $@

docs: setup .venv-docs/installed
	PYTHONPATH=$(CURDIR)/.venv-docs$(if $(MMDENSE_PYTHON),:$(PYTHONPATH)) \
		$(PY) -m sphinx -q -E -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html
	@echo docs/_build/html/index.html

.venv-docs/installed: requirements/docs.txt | setup
	rm -rf .venv-docs
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-docs -r $<
	touch $@

lint: setup
	$(PY) -m pre_commit run --all-files

clean:
	rm -rf .venv .venv-classic .venv-bench .venv-docs docs/_build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
