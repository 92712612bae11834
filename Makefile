# Needs make and Python >= 3.11; for petastorm's environment, and so for `make test`, 3.11 or 3.12; for Airflow's,
# and so for `make test-long`, 3.11 to 3.14.
# Every target makes the environment it needs; none has to be activated.

CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
# Besides PYTHON, which may name a Python for .venv that is too new here.
PETASTORM_CANDIDATES := $(PYTHON) python3 python3.12 python3.11
AIRFLOW_CANDIDATES := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11
IN_ENV := VIRTUAL_ENV="$(CURDIR)/.venv" PATH="$(CURDIR)/.venv/bin:$$PATH"
IN_PETASTORM := VIRTUAL_ENV="$(CURDIR)/.venv-petastorm" PATH="$(CURDIR)/.venv-petastorm/bin:$$PATH"
# Written last: an environment without it was interrupted, and is made again from nothing.
READY := .venv/ready
PETASTORM_READY := .venv-petastorm/ready
AIRFLOW_READY := .venv-airflow/ready
# The laws of readers, for both readers there; and those of training, which has to work with pyarrow 14 and NumPy 1.26.
PETASTORM_TESTS := $(addprefix tests/test_, readers.py stream.py shard.py plan.py kernels.py lazy_adam.py in_place.py \
    petastorm.py device_feed.py read_ahead.py randomness.py model.py checkpoint.py train.py warm_start.py \
    align.py compare.py heldout.py report.py board.py)

.PHONY: help setup setup-petastorm setup-airflow run test test-long chromium bench lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make the environment, .venv (PYTHON=... names the Python to use)

setup-petastorm: $(PETASTORM_READY)  ## make the environment of --reader petastorm, .venv-petastorm

setup-airflow: $(AIRFLOW_READY)  ## make an environment with Airflow alone, .venv-airflow, for jobs/airflow_dags

run: setup  ## prepare PTB, train on it and show neighbours (INPUT=... where the text is; no network: a demo corpus)
	@$(IN_ENV) INPUT="$(INPUT)" bash tools/run.sh

test: lint setup-petastorm  ## check style and types, run the tests in both environments but for the long ones
	@$(IN_ENV) pytest -m "not long"
	@$(IN_PETASTORM) pytest -m "not long" $(PETASTORM_TESTS)

test-long: setup setup-petastorm setup-airflow chromium  ## run all tests: minutes
	@$(IN_ENV) pytest
	@$(IN_PETASTORM) pytest $(PETASTORM_TESTS)

# The browser in which reports are looked at. Where it cannot be installed here, that test says what to do.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	    echo "Installing chromium."; \
	    { apt-get install -qq -y --no-install-recommends chromium || { apt-get update -qq && \
	    apt-get install -qq -y --no-install-recommends chromium; }; } >/dev/null || true; }

bench: setup  ## measure training on PTB beside a plain loop and gensim (INPUT=... where the text is): minutes
	@$(IN_ENV) python benchmarks/train.py --ptb "$(or $(INPUT),data/cache/ptb.train.txt)"

lint: setup  ## check style and types
	@$(IN_ENV) ruff check .
	@$(IN_ENV) ruff format --check .
	@$(IN_ENV) mypy

clean:  ## remove .venv, .venv-petastorm, .venv-airflow and caches
	rm -rf .venv .venv-petastorm .venv-airflow build *.egg-info .mypy_cache .pytest_cache .ruff_cache
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
	@$(IN_ENV) pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,training,retrain,dev]'
	@$(IN_ENV) python tools/finish_environment.py
	@touch $@

$(PETASTORM_READY): pyproject.toml constraints-petastorm.txt $(wildcard tools/*torchrun*.py tools/finish_*.py)
	@set -e; \
	for name in $(PETASTORM_CANDIDATES); do \
	    "$$name" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	        && { python="$$name"; break; }; \
	    found="$$found$$("$$name" --version 2>/dev/null | sed 's/^/, /')"; \
	done; \
	test -n "$$python" || { \
	    found="$${found:-, none}"; \
	    echo "petastorm needs pyarrow 14, so Python 3.11 or 3.12; found $${found#, }." >&2; \
	    echo "Name one: make setup-petastorm PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	if test -e $@; then \
	    echo "Bringing .venv-petastorm up to date."; rm $@; \
	else \
	    echo "Making .venv-petastorm with $$("$$python" --version). It is as large as .venv without Spark."; \
	    "$$python" -m venv --clear .venv-petastorm; \
	fi
	@$(IN_PETASTORM) pip install --quiet --disable-pip-version-check -c constraints-petastorm.txt \
	    -e '.[training,petastorm]' pytest
	@$(IN_PETASTORM) pip install --quiet --disable-pip-version-check -c constraints-petastorm.txt --no-deps petastorm
	@$(IN_PETASTORM) python tools/finish_environment.py --no-spark
	@touch $@

# Airflow is never installed beside our own packages: it pins a hundred of its own, and the DAG imports none of ours.
$(AIRFLOW_READY): constraints-airflow.txt
	@set -e; \
	for name in $(AIRFLOW_CANDIDATES); do \
	    "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null \
	        && { python="$$name"; break; }; \
	    found="$$found$$("$$name" --version 2>/dev/null | sed 's/^/, /')"; \
	done; \
	test -n "$$python" || { \
	    found="$${found:-, none}"; \
	    echo "Airflow 3.3 needs Python 3.11 to 3.14; found $${found#, }." >&2; \
	    echo "Name one: make setup-airflow PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	if test -e $@; then \
	    echo "Bringing .venv-airflow up to date."; rm $@; \
	else \
	    echo "Making .venv-airflow with $$("$$python" --version): 0.3 GB."; \
	    "$$python" -m venv --clear .venv-airflow; \
	fi
	@.venv-airflow/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-airflow.txt apache-airflow
	@touch $@
