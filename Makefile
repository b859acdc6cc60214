# minipacs: `make run` starts the archive, `make test` runs its tests. Needs git, make and Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
# The system's own Python, when it is new enough; else the newest one that is.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v "$$p" && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url \
	--python-version 3.11 pyproject.toml

.DELETE_ON_ERROR:
.PHONY: run install test check viewer bench soak lock docs clean

run: install
	@exec $(BIN)/minipacs serve

install: $(VENV)/.installed

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is missing. Type: sudo apt install python3 python3-venv"; exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "This Python cannot make a virtual environment. Type: sudo apt install python$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"; exit 1; fi
	@echo "Making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed: requirements.lock pyproject.toml $(VENV)/.made
	@echo "Installing the locked dependencies (some minutes the first time)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo "Installing what the tests need"
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

# make test ARGS="-k something -n0"
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q --collect-only -n0 -p tests.requirement_matrix

# The viewer (OHIF) of /viewer/, fetched once: make viewer ARGS="--from app-3.13.2.tgz" without the network
viewer: install
	@$(BIN)/python -m minipacs.viewer $(ARGS)

# Figures beside Orthanc and DCMTK, when they are installed: make bench ARGS="--slices 60 --repeat 1"
bench: $(VENV)/.installed-dev
	$(BIN)/python -m tests.bench $(ARGS)

# Ten minutes at full load beside hostile peers, an object of 1 GiB: make soak ARGS="--seconds 60 --object-mib 100"
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak $(ARGS)

# What is generated and committed.
docs: $(VENV)/.installed
	$(BIN)/python -m minipacs.settings_page > docs/settings.md
	$(BIN)/python -m minipacs.conformance_page > docs/conformance.md
	$(BIN)/python -m minipacs.ihe_page > docs/ihe.md

# New versions of dependencies: make lock ARGS=--upgrade
lock: $(VENV)/.installed
	$(PIP) install uv
	$(COMPILE) --group build --output-file requirements.lock $(ARGS)
	$(COMPILE) --group build --group dev --constraints requirements.lock --output-file requirements-dev.lock $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
