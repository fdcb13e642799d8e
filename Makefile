# trainwire: `make` alone lists the commands.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Outside the tree, so that a fresh clone finds it: a folder for each list of versions.
REQUIREMENTS := tests/integrations/requirements.txt
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/trainwire
FRAMEWORKS := $(CACHE)/frameworks-$(shell $(PYTHON) -c 'import hashlib, sys; print(sys.implementation.cache_tag + "-" + hashlib.sha256(open("$(REQUIREMENTS)", "rb").read()).hexdigest()[:12])')

# Images set it to stay small. Our packages are installed without bytecode, and each of thousands of processes that the
# tests start would compile all that it imports: three times the CPU time of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo up test frameworks system browser check docs kubernetes audit licenses bench chaos hostile certify certify-sample format clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.embedded ## set everything up and run a real training under trainwire
	@$(BIN)/trainwire demo

up: $(VENV)/.embedded ## run the whole stack in the foreground; ctrl-C stops it
	@$(BIN)/trainwire up

# Twice as many processes as the two cores of CI: they often wait for servers and for what they have started.
test: $(VENV)/.test ## run the tests, on real servers that they start themselves
	$(BIN)/python -m pytest -n 4 --dist worksteal $(addprefix --ignore tests/,integrations browser system chaos)

frameworks: $(VENV)/.test $(FRAMEWORKS) ## test the integrations with the real Lightning, Transformers, Keras and Ultralytics
	TRAINWIRE_TEST_FRAMEWORKS=1 PYTHONPATH=$(FRAMEWORKS) $(BIN)/python -m pytest tests/integrations -n 2 --dist worksteal

system: $(VENV)/.test ## run the tests of whole worker processes, killed and restarted
	$(BIN)/python -m pytest tests/system -n 4 --dist worksteal

browser: $(VENV)/.test ## run the tests of the page, in a headless Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest tests/browser -n 2 --dist worksteal

check: $(VENV)/.test ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs ## build the site of docs/ into build/site; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

kubernetes: $(VENV)/.kubernetes ## render deploy/kubernetes with kubectl, and check it against the published schemas
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m pytest tests/unit/test_kubernetes.py

audit: $(VENV)/.auditors ## look up known vulnerabilities of every version in constraints.txt; needs PyPI itself
	$(VENV)/audit/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps -r constraints.txt

licenses: $(VENV)/.auditors $(VENV)/.test ## list the licence of each installed package
	$(VENV)/audit/bin/pip-licenses --python=$(BIN)/python --from=mixed --order=license

bench: $(VENV)/.test ## measure; prints the tables of docs/benchmarks.md and draws its plots (about eight minutes)
	$(BIN)/python -m benchmarks

chaos: $(VENV)/.test ## inject faults for ten minutes; prints its seed (CHAOS_SECONDS, CHAOS_SEED, CHAOS_FAULTS)
	CHAOS_SECONDS=$${CHAOS_SECONDS:-600} $(BIN)/python -m pytest tests/chaos/test_chaos.py -s -p no:randomly

hostile: $(VENV)/.test ## run hostile trainers beside honest ones for ten minutes (AUDIT_SECONDS, AUDIT_SEED)
	AUDIT_SECONDS=$${AUDIT_SECONDS:-600} $(BIN)/python -m pytest tests/chaos/test_hostile_audit.py -s -p no:randomly

certify: $(VENV)/.test ## let every call that leaves a process fail once, in each way (hours; goes on where it ended)
	$(BIN)/python -m tests.certify --lanes $${CERTIFY_LANES:-$$(nproc)}

certify-sample: $(VENV)/.test ## a minute of the runs of certify, drawn by the hash of the commit (CERTIFY_SECONDS)
	$(BIN)/python -m tests.certify --work build/certify-sample --sample $$(git rev-parse HEAD) --seconds $${CERTIFY_SECONDS:-60}

format: $(VENV)/.test ## bring the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches; data of `trainwire up` stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# Their own environment, so that the needs of pip-audit do not change the versions that it audits.
$(VENV)/.auditors:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3' 'pip-licenses>=5.5,<6'
	@touch $@

$(VENV)/.kubernetes: | $(VENV)/.test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'kubernetes-validate==1.37.0'
	@$(BIN)/python -m tests.kubectl $(BIN)
	@touch $@

# Renamed when it is complete: an install that was killed leaves no half of it.
$(FRAMEWORKS): | $(VENV)/.test
	@echo 'installing the frameworks into $@; this takes a minute or two, once'
	@rm -rf $@.new
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target $@.new -r $(REQUIREMENTS)
	@mv $@.new $@

# A stamp per extra: installed again only when the project's metadata or the pins change. Not compiled: Python compiles
# the small part of the modules that is imported, with its first import.
$(VENV)/.%: pyproject.toml constraints.txt
	@echo 'setting up $(VENV) with the packages of trainwire[$*]; this takes half a minute, once'
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv --quiet --seed --python $(PYTHON) $(VENV); \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$*]'; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$*]'; \
	fi
	@touch $@
