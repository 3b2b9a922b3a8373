# Two commands do everything on a fresh machine: `make quickstart` and `make test`. Each target makes .venv if there is none.

# Large pages: a training step on a CPU fills hundreds of megabytes anew, and in small pages an eighth of the time goes
# into mapping them (glibc; other systems ignore it).
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint format bench clean

quickstart: .venv/installed
	$(BIN)/camelid quickstart

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Compares with Hugging Face on PyTorch, which goes into an environment of its own.
bench: .venv/installed .venv-bench/installed
	$(BIN)/python benchmarks/compare.py --peer_python=.venv-bench/bin/python

.venv/installed: setup.py constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-bench/installed: benchmarks/requirements.txt
	test -d .venv-bench || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-bench *.egg-info build
