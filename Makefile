# Each target sets up what it needs in .venv when that is missing or out of date.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
# Cookiecutter alone, for `demo` and `bake`; everything else, for tests and checks.
BAKER := $(VENV)/baker
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# In the order of conftest.py, and not of how many tests a file has.
PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder
TEMPLATE := cookiecutter.json hooks templates {{cookiecutter.project_slug}}

.PHONY: help install demo bake test test-fast tox bench check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(READY) ## Make .venv with everything that tests and checks need

demo: $(BAKER) ## Bake the defaults into build/demo and flood them with 20,000 slow tasks
	@rm -rf build/demo
	@$(call bake,build/demo)
	@echo "Baked build/demo/acme-tasks; now its 'make prove': set-up, then the flood, 2 minutes ..."
	@$(MAKE) --no-print-directory -C build/demo/acme-tasks prove
	@echo "The project is in build/demo/acme-tasks, the plot in"
	@echo "  $(CURDIR)/build/demo/acme-tasks/prove.png"

bake: $(BAKER) ## Bake the defaults into build/bake, to work on what is generated
	@rm -rf build/bake/acme-tasks
	@$(call bake,build/bake)
	@echo "Baked build/bake/acme-tasks"

test: $(READY) ## Bake, and run what was baked; all tests, about 10 minutes; ARGS="-k bake" for some
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-fast: $(READY) ## The tests without the slow ones
	@$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(ARGS)

# tox finds what is in PATH; of pyenv's Pythons, that is the one in use.
tox: $(READY) ## The tests on every Python from 3.11 to 3.14 that is installed
	@PATH="$$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[1-4].*/bin 2>/dev/null | tr '\n' ':')$$PATH" $(BIN)/tox run $(ARGS)

bench: $(READY) ## A baked project beside stock Celery: throughput, sending, latency; some minutes
	@$(BIN)/python benchmarks/bench.py $(ARGS)

check: $(READY) ## Lint, format and types of hooks and tests
	$(BIN)/ruff check benchmarks hooks tests
	$(BIN)/ruff format --check benchmarks hooks tests
	$(BIN)/mypy

clean: ## Remove what can be made again
	rm -rf $(VENV) build .tox .mypy_cache .pytest_cache .ruff_cache

$(BAKER): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, and this is " + sys.version.split()[0] + ": make PYTHON=python3.13 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) with Cookiecutter, some seconds ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade 'pip>=25.1'  # the first that reads dependency groups
	@$(PIP) --group bake
	@touch $@

$(READY): $(BAKER)
	@echo "Setting up $(VENV) for tests and checks, about half a minute ..."
	@$(PIP) --group dev
	@touch $@

# Cookiecutter copies a template that has a pre_prompt hook, with all that lies beside it: .venv,
# earlier bakes. So it gets a copy of the template alone, and no settings of the user's own.
define bake
rm -rf build/template && mkdir -p build/template $(1) && \
  cp -R $(foreach part,$(TEMPLATE),'$(part)') build/template && \
  find build/template -name __pycache__ -prune -exec rm -rf {} + && \
  $(BIN)/cookiecutter build/template --no-input --default-config --output-dir $(1) >build/bake.log || \
  { cat build/bake.log; exit 1; }
endef
