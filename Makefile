# Every target works on a bare machine with Python 3.11: it builds what it needs first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# mypy must see the folders under their import name; the tree holds links only.
TYPES := build/types/fedprofile
PACKAGES := common client server audit simulations

.PHONY: help install simulate demo-edge test test-long lint types unit clean
.DEFAULT_GOAL := help

help:
	@echo "make simulate   train a shared encoder over simulated devices, with user-level DP"
	@echo "make demo-edge  a server and five devices on this machine, over TLS, with a kill on the way"
	@echo "make test       lint, types and tests"
	@echo "make test-long  the tests that take a minute or more each, and no others"
	@echo "make install    virtual environment in $(VENV), command $(BIN)/fedprofile"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Install Python 3.11 with venv, or name it by PYTHON="; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@

simulate: install
	$(BIN)/fedprofile simulate

demo-edge: install
	$(BIN)/python -m fedprofile.simulations.demo_edge

test: lint types unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	rm -rf build/types && mkdir -p $(TYPES)
	for package in $(PACKAGES); do ln -s $(CURDIR)/$$package $(TYPES)/$$package; done
	cd build/types && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml --namespace-packages -p fedprofile

unit: install
	# One thread a worker: two of each on two cores wait for one another.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-long: install
	$(BIN)/python -m pytest -m long

clean:
	rm -rf $(VENV) build *.egg-info
