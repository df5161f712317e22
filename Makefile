.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m

.PHONY: race test test-slow test-all test-integrations test-versions test-gpu test-gpu-slow bench-gpu table check bench memory leaderboard docs clean

$(VENV)/.lab: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch numpy
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[lab]"
	touch $@

$(VENV)/.dev: $(VENV)/.lab
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

race: $(VENV)/.lab  ## set up, race eight optimizers on digits, write runs/digits-conv/report.html
	$(VENV)/bin/descend race

test: $(VENV)/.dev  ## set up, run the tests but those marked slow
	$(RUN) pytest -n 2 --dist loadgroup -m "not slow"

test-slow: $(VENV)/.dev  ## those: every text of every optimizer, compiled
	$(RUN) pytest -n 2 --dist loadgroup -m slow

test-all: $(VENV)/.dev  ## both
	$(RUN) pytest -n 2 --dist loadgroup

VERSIONS := 2.6.0 2.9.1 2.11.0 2.12.1 2.13.0 2.14.1 2.15.0
ON_VERSIONS := tests/engine/test_half_precision.py $(addprefix tests/engine/executors/test_,every_torch.py plain_tensors.py compiler.py written_cpp.py)

.PRECIOUS: .venv-torch-%/.ready
.venv-torch-%/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==$* numpy pytest hypothesis
	$(@D)/bin/pip install --quiet --no-deps --editable .
	touch $@

test-versions: $(VERSIONS:%=test-torch-%)  ## the executors on every torch that is named, 5 GB each

test-torch-%: .venv-torch-%/.ready
	.venv-torch-$*/bin/python -m pytest $(ON_VERSIONS)

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
	$(BENCH)/bin/python benchmarks/record.py measure runs/bench.json
	$(BENCH)/bin/python benchmarks/record.py performance runs/bench.json docs/performance.md
	$(BENCH)/bin/python benchmarks/default_step.py --page docs/default-step.md
	$(BENCH)/bin/descend bench --render runs/bench.json --html runs/bench.html

memory: $(VENV)/.lab  ## bytes, peaks, times and losses of every storage, and docs/memory.md from them
	$(VENV)/bin/descend memory --peaks --time --json runs/memory.json
	$(VENV)/bin/python benchmarks/record.py train runs/memory.json
	$(VENV)/bin/python benchmarks/record.py memory runs/memory.json docs/memory.md

leaderboard: $(VENV)/.lab  ## 25 optimizers on every task, in parts that go on where they were stopped, and its page
	$(VENV)/bin/python benchmarks/leaderboard.py record docs/leaderboard.json
	$(VENV)/bin/python benchmarks/leaderboard.py page docs/leaderboard.json docs/leaderboard.md

docs/race.json: $(VENV)/.lab  ## the curves of every optimizer on digits, about 10 minutes, and the README's picture
	$(VENV)/bin/descend race --optimizers "$$($(VENV)/bin/python tools/picture.py names)" --out runs/race
	$(VENV)/bin/python tools/picture.py runs/race

docs/plan.md: $(VENV)/.lab  ## what optimizers cost on eight processes; counted, not timed
	$(VENV)/bin/descend plan --model gpt2 --ranks 8 --out docs/plan.md

FRAMEWORKS := .venv-integrations
TRIED := tests/integrations/tried.txt
PEERS := tests/integrations/peers.txt

$(FRAMEWORKS)/.ready: pyproject.toml $(TRIED) $(PEERS)
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install --quiet --constraint $(TRIED) torch numpy
	$(FRAMEWORKS)/bin/pip install --quiet --constraint $(TRIED) --editable ".[integrations]" --requirement $(PEERS) pytest hypothesis
	touch $@

test-integrations: $(FRAMEWORKS)/.ready  ## the recipes of docs/frameworks and docs/from_*.md, and trainings in other people's frameworks
	$(FRAMEWORKS)/bin/python -m pytest -m integrations -rs tests/integrations

# Triton stands in a folder of its own: other tests run as where there is none.
TRITON := .triton

$(TRITON)/.ready: $(VENV)/.dev
	$(VENV)/bin/pip install --quiet --no-deps --upgrade --target $(TRITON) triton==3.7.1
	touch $@

test-gpu: $(TRITON)/.ready  ## what a step asks of a GPU, and the kernels written for one, where there is none
	PYTHONPATH=$(TRITON) $(RUN) pytest -m "gpu and not slow" -rs tests/gpu

test-gpu-slow: $(TRITON)/.ready  ## more rules, and another generation of GPUs
	PYTHONPATH=$(TRITON) $(RUN) pytest -m "gpu and slow" -rs tests/gpu

docs/gpu.json: $(VENV)/.dev  ## launches, copies and waits of a step, beside other optimizers; counted, not timed
	$(VENV)/bin/python tools/gpu_account.py record $@
	$(VENV)/bin/python tools/gpu_account.py render $@ docs/gpu.md

BENCH_GPU_PYTHON ?= $(PYTHON)

bench-gpu:  ## on a machine with CUDA, in an environment that has torch: the CUDA tests, and docs/gpu.md's times
	$(BENCH_GPU_PYTHON) tools/bench_gpu.py test runs
	$(BENCH_GPU_PYTHON) tools/bench_gpu.py record docs/gpu-card.json
	$(BENCH_GPU_PYTHON) tools/bench_gpu.py render docs/gpu-card.json docs/gpu.md

clean:
	rm -rf $(VENV) $(BENCH) $(FRAMEWORKS) $(TRITON) .venv-torch-* build dist runs
