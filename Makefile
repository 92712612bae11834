# Needs make and Python >= 3.11. Every target makes the environment it needs; none has to be activated.

CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
IN_ENV := VIRTUAL_ENV="$(CURDIR)/.venv" PATH="$(CURDIR)/.venv/bin:$$PATH"
# Written last: an environment without it was interrupted, and is made again from nothing.
READY := .venv/ready

.PHONY: help setup run test test-long bench lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make the environment, .venv (PYTHON=... names the Python to use)

run: setup  ## prepare PTB, train on it and show neighbours (INPUT=... where the text is; no network: a demo corpus)
	@$(IN_ENV) INPUT="$(INPUT)" bash tools/run.sh

test: lint  ## check style and types, run the tests but for the long ones
	@$(IN_ENV) pytest -m "not long"

test-long: setup  ## run all tests: minutes
	@$(IN_ENV) pytest

bench: setup  ## measure training on PTB beside a plain loop and gensim (INPUT=... where the text is): minutes
	@$(IN_ENV) python benchmarks/train.py --ptb "$(or $(INPUT),data/cache/ptb.train.txt)"

lint: setup  ## check style and types
	@$(IN_ENV) ruff check .
	@$(IN_ENV) ruff format --check .
	@$(IN_ENV) mypy

clean:  ## remove .venv and caches
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "data/ and runs/ stay: remove them yourself if you mean to"

$(READY): pyproject.toml constraints.txt $(wildcard tools/*.*)
	@set -e; \
	for name in $(CANDIDATES); do \
	    "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { python="$$name"; break; }; \
	done; \
	test -n "$$python" || { echo "No Python >= 3.11 among: $(CANDIDATES). Name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }; \
	if test -e $@; then \
	    echo "Bringing .venv up to date."; rm $@; \
	else \
	    echo "Making .venv with $$("$$python" --version). The first time downloads about 0.9 GB where torch comes"; \
	    echo "as a CPU build and several GB where it brings CUDA, and takes minutes without a word."; \
	    "$$python" -m venv --clear .venv; \
	fi
	@$(IN_ENV) pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,training,dev]'
	@$(IN_ENV) python tools/finish_environment.py
	@touch $@
