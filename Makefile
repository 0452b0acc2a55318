# make reproduce   runs the laptop study (real models, real training, no GPU, no key) and draws its figures
# make figures     draws every figure again and executes the analysis notebooks, from stored results alone
# make site        sets stored results, figures and executed notebooks as pages in site/, for a browser; executes nothing
# make test        runs every test
# make bench       a plain baseline against this project on the same work, with floors (BENCH=--quick: three minutes on a CPU)
# make gpu-test    the tests that need a CUDA device
# They set up what they need: a virtual environment in .venv, the pinned packages, the embedded models.

PYTHON ?= python3
VENV   ?= .venv
STUDY  ?= laptop
BIN     = $(VENV)/bin
RUN     = $(BIN)/python -m
STAMP   = $(VENV)/.installed

.PHONY: help setup models reproduce figures site test bench gpu-test lint lab clean

help:
	@sed -n 's/^# //p' Makefile
	@echo "other targets: setup, models, figures, lint, lab, clean; STUDY=name picks a study of notebooks/studies (now: $(STUDY))"

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(STAMP)

models: setup
	$(RUN) selftrain.models fetch

reproduce: models
	$(RUN) selftrain.study run $(STUDY)

figures: setup
	$(RUN) selftrain.study figures
	$(RUN) selftrain.readme write

site: setup
	$(RUN) selftrain.site build

test: models
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile

bench: models
	$(RUN) selftrain.bench run $(BENCH)

gpu-test: models
	$(RUN) pytest tests/gpu -m gpu

lint: setup
	$(RUN) ruff check lib tests

lab: models
	$(BIN)/jupyter lab notebooks

# Removes what can be made again. Results are asked for by name, and never removed without an answer.
clean:
	rm -rf .pytest_cache .ruff_cache .cache lib/*.egg-info
	find lib tests -name __pycache__ -prune -exec rm -rf {} +
	@if [ -d results ] && ls results/*/runs >/dev/null 2>&1; then \
	  printf 'Delete the run folders under results/*/runs as well? [y/N] '; read answer || answer=n; \
	  if [ "$$answer" = y ]; then rm -rf results/*/runs results/*/executed; else echo "results kept"; fi; \
	fi
