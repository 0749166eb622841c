# Each target sets up what it needs in .venv when that is missing or out of date.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
# Cookiecutter alone, for `demo` and `bake`; everything else, for tests and checks.
BAKER := $(VENV)/baker
READY := $(VENV)/ready
# Celery's and kombu's source distributions, which carry their tests, and the bake they run on.
SUITE := build/celery_suite
# What `make bake` bakes.
BAKE := build/bake/acme-tasks
# What the user's settings say of other environments: pip would install elsewhere, or refuse.
export PIP_USER = 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME
PIP := $(BIN)/python -I -m pip install --quiet --disable-pip-version-check
# In the order of conftest.py, and not of how many tests a file has.
PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder
TEMPLATE := cookiecutter.json hooks templates {{cookiecutter.project_slug}}

.PHONY: help install demo bake test test-fast test-runtime test-containers test-celery tox bench \
  bench-keys dashboard check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

install: $(READY) ## Make .venv with everything that tests and checks need

demo: $(BAKER) ## Bake the defaults into build/demo and flood them with 20,000 slow tasks
	@rm -rf build/demo
	@$(call bake,build/demo)
	@echo "Baked build/demo/acme-tasks; now its 'make prove': set-up, then the flood, 2 minutes ..."
	@$(MAKE) --no-print-directory -C build/demo/acme-tasks prove
	@echo "The project is in build/demo/acme-tasks, the plot in"
	@echo "  $(CURDIR)/build/demo/acme-tasks/prove.png"

bake: $(BAKER) ## Bake the defaults into build/bake, to work on what is generated
	@rm -rf $(BAKE)
	@$(call bake,build/bake)
	@echo "Baked $(BAKE)"

test: $(READY) ## Bake, and run what was baked; about 20 minutes; ARGS="-k bake" for some
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-fast: $(READY) ## The tests without the slow ones
	@$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(ARGS)

# With the bake's settings and source; no conftest.py from above.
test-runtime: $(READY) ## The runtime's own tests, on build/bake; ARGS="tests/runtime/lanes -k drain" for some
	@$(BIN)/python -m pytest -c $(BAKE)/pyproject.toml --rootdir $(BAKE) --confcutdir tests/runtime \
	  --numprocesses 3 --dist loadfile $(or $(ARGS),tests/runtime)

test-containers: $(READY) ## Build a bake's image, and run its Compose file, about 5 minutes
	@$(BIN)/python -m pytest tests/containers $(ARGS)

test-celery: $(READY) $(SUITE)/ready ## Celery's and kombu's own tests on a bake and on stock, about 5 minutes
	@rm -rf $(SUITE)/acme-tasks
	@$(call bake,$(SUITE))
	@PYTHONPATH=tests $(BIN)/python -m celery_suite $(ARGS)

# tox finds what is in PATH; of pyenv's Pythons, that is the one in use.
tox: $(READY) ## The tests on every Python from 3.11 to 3.14 that is installed
	@PATH="$$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[1-4].*/bin 2>/dev/null | tr '\n' ':')$$PATH" $(BIN)/tox run $(ARGS)

bench: $(READY) ## A project beside stock Celery, dramatiq, rq and huey, about 35 minutes; ARGS="--help"
	@$(BIN)/python benchmarks/bench.py $(ARGS)

bench-keys: $(READY) ## What keys cost: throughput, sending, and a fetch at 100,000 keys; some minutes
	@$(BIN)/python benchmarks/keys.py $(ARGS)

dashboard: $(READY) ## Draw docs/dashboard.png: a project's dashboard during a flood, by a real Prometheus
	@rm -rf build/dashboard
	@$(call bake,build/dashboard)
	@PYTHONPATH=tests $(BIN)/python benchmarks/dashboard.py build/dashboard/acme-tasks docs/dashboard.png

check: $(READY) ## Lint, format and types of hooks and tests
	$(BIN)/ruff check benchmarks hooks tests
	$(BIN)/ruff format --check benchmarks hooks tests
	$(BIN)/mypy

clean: ## Remove what can be made again
	rm -rf $(VENV) build .tox .mypy_cache .pytest_cache .ruff_cache

# Scripts in .venv name the folder in which they were made. After a move it is made anew.
ifneq ($(shell cat $(BAKER) 2>/dev/null),$(CURDIR))
CLEAR := --clear
$(BAKER): ANEW
ANEW:
endif

$(BAKER): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, and this is " + sys.version.split()[0] + ": make PYTHON=python3.13 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) with Cookiecutter, some seconds ..."
	@$(PYTHON) -I -m venv $(CLEAR) $(VENV)
	@$(PIP) --upgrade 'pip>=25.1'  # the first that reads dependency groups
	@$(PIP) --group bake
	@pwd -P >$@

$(READY): $(BAKER)
	@echo "Setting up $(VENV) for tests and checks, about half a minute ..."
	@$(PIP) --group dev
	@touch $@

$(SUITE)/ready: tests/celery_suite/requirements.txt | $(BAKER)
	@echo "Downloading the sources of Celery and kombu ..."
	@rm -rf $(SUITE) && mkdir -p $(SUITE)
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
	  --require-hashes --dest $(SUITE) --requirement $<
	@for archive in $(SUITE)/*.tar.gz; do \
	  folder=$(SUITE)/$$(basename "$${archive%-*}") && mkdir "$$folder" && \
	  tar -xzf "$$archive" -C "$$folder" --strip-components 1 || exit 1; \
	done
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
