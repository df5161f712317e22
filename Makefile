.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m

.PHONY: race test test-slow test-all table check bench docs clean

$(VENV)/.lab: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch numpy
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[lab]"
	touch $@

$(VENV)/.dev: $(VENV)/.lab
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

race: $(VENV)/.lab  ## set up, race eight optimizers on digits, write runs/race/report.html
	$(VENV)/bin/descend race

test: $(VENV)/.dev  ## set up, run the tests but those marked slow
	$(RUN) pytest -n 2 -m "not slow"

test-slow: $(VENV)/.dev  ## those: every text of every optimizer, compiled
	$(RUN) pytest -n 2 -m slow

test-all: $(VENV)/.dev  ## both
	$(RUN) pytest -n 2

table: $(VENV)/.dev  ## record which capabilities pass, and write the tables from the record
	$(RUN) pytest -n 2 -m capability --record-capabilities=docs/capabilities.json
	$(VENV)/bin/python tools/table.py docs/capabilities.json

check: $(VENV)/.dev  ## lint and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

SITE := runs/site

$(VENV)/.docs: $(VENV)/.dev
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

docs: $(VENV)/.docs  ## set up, then build the documentation site: runs/site/html; the build itself fetches nothing
	$(VENV)/bin/python tools/make_site.py $(SITE)
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --quiet --strict --config-file $(SITE)/mkdocs.yml

BENCH := .venv-bench

$(BENCH)/.ready: pyproject.toml constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt torch numpy
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt --editable ".[lab]" --requirement benchmarks/peers.txt
	$(BENCH)/bin/pip install --quiet --no-deps timm==1.0.31
	touch $@

bench: $(BENCH)/.ready  ## every number beside every peer, in an environment of its own
	mkdir -p runs
	$(BENCH)/bin/descend bench --all --json runs/bench.json --html runs/bench.html

clean:
	rm -rf $(VENV) $(BENCH) build dist runs
