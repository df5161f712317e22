.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m

.PHONY: race test test-all check bench clean

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

test: $(VENV)/.dev  ## set up, run all tests
	$(RUN) pytest

check: $(VENV)/.dev  ## lint and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: $(VENV)/.dev  ## the whole table against every peer
	$(VENV)/bin/descend bench --peers

clean:
	rm -rf $(VENV) build dist runs
