# Needs make and Python >= 3.11. petastorm's environment, and therefore `make test`, needs Python 3.11 or 3.12.
# Airflow's environment, and therefore `make test-all`, needs 3.11 to 3.14.
# Every target creates the environment that it needs; you do not have to activate one.

IN_ENV := VIRTUAL_ENV="$(CURDIR)/.venv" PATH="$(CURDIR)/.venv/bin:$$PATH"
IN_PETASTORM := VIRTUAL_ENV="$(CURDIR)/.venv-petastorm" PATH="$(CURDIR)/.venv-petastorm/bin:$$PATH"
# `ready` is written last: an environment without it was interrupted, and is created again from scratch. .venv starts
# with the packages for running; the packages for retraining and for tests are added when a target needs them.
RUNNING := .venv/ready
RETRAINING := .venv/retraining
DEVELOPING := .venv/developing
PETASTORM := .venv-petastorm/ready
AIRFLOW := .venv-airflow/ready
# Two processes, each of which runs whole files. A test that hangs fails with a traceback.
PYTEST := pytest -n 2 --dist loadfile --timeout
QUICK_S := 240
LONG_S := 1800
# The tests of both readers, and those of training, which has to work with pyarrow 14 and NumPy 1.26.
READER_TESTS := $(addprefix tests/reading/test_, readers.py petastorm.py)
PETASTORM_TESTS := $(READER_TESTS) $(addprefix tests/, $(addsuffix .py, shared/test_randomness dataset/test_shard \
    $(addprefix model/test_, kernels lazy_adam in_place model) \
    $(addprefix reading/test_, stream plan device_feed prefetch) \
    $(addprefix runs/test_, checkpoint warm_start report board) \
    $(addprefix vectors/test_, align compare) judging/test_heldout commands/test_train))

.DEFAULT_GOAL := help
.PHONY: help run setup setup-retrain setup-petastorm setup-airflow setup-dev test test-all lint bench chromium clean

## For users
run: $(RUNNING)  ## prepare PTB, train, show neighbours (INPUT=... names the text; without a network: demo corpus)
	@$(IN_ENV) INPUT="$(INPUT)" bash tools/run.sh

setup: $(RUNNING)  ## create the environment of `make run`, .venv (PYTHON=... names the Python to use)

setup-retrain: $(RETRAINING)  ## add MLflow and Optuna to .venv, for jobs/retrain.py and jobs/tune.py

setup-petastorm: $(PETASTORM)  ## create the environment of --reader petastorm, .venv-petastorm

setup-airflow: $(AIRFLOW)  ## create an environment with only Airflow, .venv-airflow, for jobs/airflow_dags

## For developers
test:  ## check style and types, run all tests except the long ones: minutes
	@$(MAKE) --no-print-directory -j 2 lint $(PETASTORM)
	@$(IN_ENV) $(PYTEST) $(QUICK_S) -m "not long"
	@$(IN_PETASTORM) $(PYTEST) $(QUICK_S) -m "not long" $(READER_TESTS)

test-all: $(AIRFLOW) chromium test  ## run all tests, also those of training in petastorm's environment: most of an hour
	@$(IN_ENV) $(PYTEST) $(LONG_S) -m long
	@$(IN_PETASTORM) $(PYTEST) $(LONG_S) $(PETASTORM_TESTS)

lint: $(DEVELOPING)  ## check style and types
	@$(IN_ENV) ruff check .
	@$(IN_ENV) ruff format --check .
	@$(IN_ENV) mypy

bench: $(DEVELOPING)  ## compare training on PTB with a plain loop and gensim (INPUT=... names the text): minutes
	@$(IN_ENV) python benchmarks/train.py --ptb "$(or $(INPUT),data/cache/ptb.train.txt)"

setup-dev: $(DEVELOPING)  ## add the packages for tests, lint and benchmarks to .venv (those targets do so themselves)

## For both
help:  ## list the targets
	@awk -F ':.*## ' '/^## / {print substr($$0, 4) ":"} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

clean:  ## remove .venv, .venv-petastorm, .venv-airflow and caches
	rm -rf .venv .venv-petastorm .venv-airflow build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "data/ and runs/ are kept; remove them yourself if you want to"

# The browser for the test of reports. If it cannot be installed here, that test says what to do.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	    echo "Installing chromium."; \
	    { apt-get install -qq -y --no-install-recommends chromium || { apt-get update -qq && \
	    apt-get install -qq -y --no-install-recommends chromium; }; } >/dev/null || true; }

# Environments: the contents of each, then one recipe for all. Where pip is called with --no-compile,
# tools/finish_environment.py compiles the few files that are loaded.

$(RUNNING): ABOUT = packages for preparing and training: 2 GB, several more if torch includes CUDA
$(RUNNING): PACKAGES = --no-compile -e '.[pipeline,training]'
$(RETRAINING): ABOUT = MLflow and Optuna: 0.2 GB
$(RETRAINING): PACKAGES = -e '.[pipeline,training,retrain,tune]'
$(DEVELOPING): ABOUT = packages for tests: 1.5 GB
$(DEVELOPING): PACKAGES = -e '.[pipeline,training,retrain,tune,dev]'
$(RETRAINING) $(DEVELOPING): | $(RUNNING)
$(RUNNING) $(RETRAINING) $(DEVELOPING): CONSTRAINTS = constraints.txt
$(RUNNING) $(RETRAINING) $(DEVELOPING): pyproject.toml constraints.txt
# PYTHON may name a Python that is too new for the other environments, so for those it is only the first candidate.
$(RUNNING) $(RETRAINING) $(DEVELOPING): CANDIDATES = $(or $(PYTHON),$(PYTHONS))

$(PETASTORM): ABOUT = packages for --reader petastorm: 1.5 GB, several more if torch includes CUDA
$(PETASTORM): PACKAGES = --no-compile -e '.[training,petastorm]' pytest pytest-timeout pytest-xdist
$(PETASTORM): PACKAGES_ALONE = petastorm
$(PETASTORM): CONSTRAINTS = constraints-petastorm.txt
$(PETASTORM): NEEDS = petastorm needs pyarrow 14, so Python 3.11 or 3.12
$(PETASTORM): NEWEST = 12
$(PETASTORM): pyproject.toml constraints-petastorm.txt

# Airflow is never installed together with our packages: it pins a hundred packages, and the DAG imports none of ours.
$(AIRFLOW): ABOUT = only Airflow: 0.3 GB
$(AIRFLOW): PACKAGES = apache-airflow
$(AIRFLOW): CONSTRAINTS = constraints-airflow.txt
$(AIRFLOW): NEEDS = Airflow 3.3 needs Python 3.11 to 3.14
$(AIRFLOW): NEWEST = 14
$(AIRFLOW): constraints-airflow.txt

$(RUNNING) $(PETASTORM): $(filter-out tools/run.sh,$(wildcard tools/*.*))

PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
CANDIDATES = $(PYTHON) $(PYTHONS)
NEEDS = shardvec needs Python 3.11 or newer
NEWEST = 99

$(RUNNING) $(RETRAINING) $(DEVELOPING) $(PETASTORM) $(AIRFLOW):
	@set -e; \
	if test -e $(@D)/ready; then \
	    echo "$(@D): $(if $(wildcard $@),bringing up to date,adding $(ABOUT))"; \
	else \
	    for name in $(CANDIDATES); do \
	        "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(NEWEST)))' 2>/dev/null \
	            && { python="$$name"; break; }; \
	        found="$$found$$("$$name" --version 2>/dev/null | sed 's/^/, /')"; \
	    done; \
	    test -n "$$python" || { \
	        found="$${found:-, none}"; echo "$(NEEDS); found $${found#, }." >&2; \
	        echo "Name one: make $(subst .venv,setup,$(@D)) PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	    echo "$(@D): $$("$$python" --version), and $(ABOUT)"; \
	    "$$python" -m venv --clear $(@D); \
	fi
	@$(@D)/bin/python tools/install.py -c $(CONSTRAINTS) $(PACKAGES)
	@$(if $(PACKAGES_ALONE),$(@D)/bin/python tools/install.py -c $(CONSTRAINTS) --no-deps $(PACKAGES_ALONE))
	@$(@D)/bin/python tools/finish_environment.py
	@touch $(@D)/ready $@
