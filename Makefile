# matalign: the commands of the artifact. `make` installs, `make repro` makes the paper, `make help` lists the rest.

PROFILE ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
UV_VERSION := 0.13.9
STAMP := $(VENV)/.installed
ONLY ?=
BENCH := .venv-bench
BENCH_LOCK := tests/benchmarks/requirements.txt

# DVC, the notebooks' kernels and the training ranks all find the same python.
export PATH := $(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# Images of containers set it: each of some thirty processes would compile 3,000 modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := install
.PHONY: install repro test test-all check verify audit sbom stale lab bench lock format clean help

install: $(STAMP) ## Install uv and the pinned packages into .venv (what plain `make` does)

$(STAMP): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3.11 found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@
	@echo "installed into $(VENV); next: make repro, or make help"

repro: $(STAMP) ## Run the pipeline: results/sample/paper.pdf; PROFILE=laptop makes that the profile of params.yaml first
	$(BIN)/python -m matalign.pipeline.repro $(if $(PROFILE),--profile $(PROFILE))

test: $(STAMP) ## Lint, and run the tests that take no minutes
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP) ## The same and the slow tests
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest

check: $(STAMP) ## Make tables, figures and paper anew from the committed metrics, and compare with git; PROFILE=laptop
	$(BIN)/python -m matalign.pipeline.repro --profile $(or $(PROFILE),laptop) --force --single-item source paper@$(or $(PROFILE),laptop)
	git diff --exit-code --stat -- $(addprefix results/$(or $(PROFILE),laptop)/,metrics tables figures paper.pdf) results/claims results/training

verify: $(STAMP) ## Re-run a stage, drawn or STAGE=, from raw data, and compare: results/<p>/verify.md; LOAD=1 loads earlier stages
	$(BIN)/python -m matalign.pipeline.verify --profile $(or $(PROFILE),laptop) $(if $(STAGE),--stage $(STAGE)) $(if $(LOAD),--load)

audit: $(STAMP) ## Look the pinned packages up among known vulnerabilities (osv.dev; docs/supply_chain.md)
	$(BIN)/uv tool run --from pip-audit==2.10.0 pip-audit --vulnerability-service osv --disable-pip --require-hashes -r requirements.txt

sbom: $(STAMP) ## List what is installed, with licences, as CycloneDX: sbom.json
	$(BIN)/uv tool run --from cyclonedx-bom==7.2.1 cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o sbom.json $(BIN)/python

stale: $(STAMP) ## List committed results whose computing code differs from HEAD's
	@$(BIN)/python -m matalign.pipeline.run stale

lab: $(STAMP) ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

bench: $(BENCH)/.installed ## Compare with the peers, side by side: results/bench; PROFILE=laptop on real crystals, ONLY=search just that
	test -d data/curated/$(or $(PROFILE),sample) || $(BIN)/python -m matalign.pipeline.run curate --profile $(or $(PROFILE),sample)
	cd tests && $(CURDIR)/$(BENCH)/bin/python -m benchmarks.run --profile $(or $(PROFILE),sample) $(ONLY)

$(BENCH)/.installed: $(STAMP) $(BENCH_LOCK)
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BIN)/uv pip install --quiet --python $(BENCH)/bin/python --require-hashes -r $(BENCH_LOCK)
	$(BIN)/uv pip install --quiet --python $(BENCH)/bin/python --no-deps -e .
	@touch $@

COMPILE = $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url --custom-compile-command "make lock"

lock: $(STAMP) ## Compile requirements.in into requirements.txt, with hashes; then the same for the peers of bench
	$(COMPILE) --upgrade requirements.in -o requirements.txt
	cp requirements.txt $(BENCH_LOCK) # uv keeps these versions wherever the peers admit them
	$(COMPILE) pyproject.toml tests/benchmarks/requirements.in -o $(BENCH_LOCK)

format: $(STAMP) ## Format the sources and strip the notebooks, as the pre-commit hooks do
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/nbstripout --keep-count --keep-id notebooks/*.ipynb

clean: ## Remove what runs have made and git ignores (not .venv, not data/raw)
	git clean -fdXq results data/curated notebooks .scratch .dvc/tmp

help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
