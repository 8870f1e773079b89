# Two commands: `make study` runs the study and builds its site, `make test` proves it. `make help` lists the rest.
# Settings (defaults in settings.ini): make study MODEL=gpt2 N=50 SEED=0 CORRUPTION=switch_subjects DEVICE=cpu

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
unexport VIRTUAL_ENV  # of another environment, which IPython would warn of
PY := $(VENV)/bin/python
# So many tests at once, each on one core and with a model of GPT-2's shape of its own (2 GB): `make test TESTS=4`.
TESTS ?= 2
# The first suitable Python on the PATH; `make PYTHON=/path/to/python3.12` takes another.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help install export study notebooks site paper lab test coverage mini bench check lock clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "Settings for study, notebooks and lab: MODEL N SEED CORRUPTION DEVICE, e.g. make study MODEL=gpt2 N=20"

install: $(VENV)/.installed ## make .venv and install the pinned versions in it (done by the others as needed)

$(VENV)/.pinned: requirements.lock
	@test -n "$(PYTHON)" || { echo "namemovers needs Python 3.11 or newer, and neither python3.11 nor python3 is one; install it, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11, which namemovers needs" >&2; exit 1; }
	@echo "Installing pinned versions in $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check -r requirements.lock
	@touch $@

# nbdev-export touches pyproject.toml without changing it: what counts is a copy, written only when it differs.
$(VENV)/pyproject.toml: pyproject.toml | $(VENV)/.pinned
	@cmp -s $< $@ || cp $< $@

$(VENV)/.installed: $(VENV)/.pinned $(VENV)/pyproject.toml
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

export: install ## write namemovers/*.py from the notebooks
	@$(VENV)/bin/nbdev-export

study: export ## run the steps and what is made of them (study.toml), save results/, build the site in _site/
	@$(PY) -m namemovers study

notebooks: export ## run all notebooks, those that the study leaves out too, and put their outputs into them
	@$(PY) -m namemovers study --update

site: install ## build _site/ again, from the notebooks as they were last executed
	@$(PY) -m namemovers site

paper: install ## the write-up as last executed, as one file each: build/writeup.html and build/writeup.pdf (needs Chromium)
	@mkdir -p build
	@$(PY) -m namemovers export writeup --to build/writeup.html
	@$(PY) -m namemovers export writeup --to build/writeup.pdf

lab: export ## open the notebooks in JupyterLab
	@$(VENV)/bin/jupyter lab --notebook-dir=. nbs

check: install ## lint with ruff and check types with mypy (two minutes, then seconds: mypy remembers)
	@$(VENV)/bin/ruff check namemovers press recipes tests bench nbs ioi_nbs
	@$(VENV)/bin/mypy

# The notebooks run in a copy of the repository, with kernels that have torch imported: results/ stays as it is.
# What they show is compared with what is committed. Settings in the environment are for the study, and not for this.
test: check ## make check, then run the notebooks and compare their outputs, then pytest
	@unset MODEL N SEED CORRUPTION DEVICE; export OMP_NUM_THREADS=1; status=0; \
	$(PY) -m press.rerun || status=1; \
	$(PY) -m pytest tests -n $(TESTS) --dist loadfile --durations=25 || status=1; \
	exit $$status

# Counting lines makes the tests a good deal slower, so it has a command of its own.
coverage: install ## pytest alone, and how much of the library it runs
	@unset MODEL N SEED CORRUPTION DEVICE; export OMP_NUM_THREADS=1; \
	$(PY) -m pytest tests -n $(TESTS) --dist loadfile --cov --cov-report=term:skip-covered

mini: install ## train the model that ships with the package again (up to 30 minutes)
	@$(PY) -m recipes.mini

bench: install ## measure the patching engine against TransformerLens, and the explorer (an hour or two; nnsight: see bench/nnsight_peer.py)
	@$(PY) bench/patching.py
	@$(PY) bench/patching.py --model mini --every 1
	@$(PY) bench/decoders.py
	@$(PY) bench/cost.py
	@$(PY) bench/scaling.py
	@$(PY) bench/study.py
	@$(PY) bench/where.py
	@$(PY) bench/copy_scores.py
	@$(PY) bench/explorer.py

lock: ## write requirements.lock anew from the newest versions that pyproject.toml allows
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 'setuptools>=77' '.[notebooks,site,figures,test,dev,gguf,cluster]'
	@{ sed -n '/^#/p' requirements.lock; build/lock/bin/python -m pip freeze --all | grep -v -E '^(namemovers|pip|wheel)\b' | sed 's/+cpu$$//'; } > build/lock.txt
	@mv build/lock.txt requirements.lock && rm -rf build/lock

clean: ## remove results/, _site/ and caches; .venv stays
	rm -rf results _site _proc build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage
	find . -name .ipynb_checkpoints -o -name __pycache__ | grep -v '^./$(VENV)/' | xargs rm -rf
