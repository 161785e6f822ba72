# make demo    set up .venv, train and fuse models on the tracked data set, evaluate them on its test split, write the report
# make test    set up .venv, run the linters and the test suite
# make docs    the pages of docs/ as a site in site/, links checked
# make gate    the demo again: its score and its time beside a fixed piece of work
# make mutate ROOM=losses    small changes of a room's code that the room's own tests miss (minutes)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
DEMO_CONFIG := configs/LF-DebianTitles-small/fusion.yaml
DEMO_RUN := Results/XMCKit/LF-DebianTitles-small/fusion

.PHONY: demo test lint docs gate mutate benchmarks clean same-python

demo: $(VENV)/installed
	$(BIN)/python train.py $(DEMO_CONFIG) --overwrite
	$(BIN)/python eval.py $(DEMO_RUN)

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { echo "error: run $(BIN)/ruff format ."; exit 1; }
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

gate: $(VENV)/installed
	$(BIN)/python -m benchmarks.gate

mutate: $(VENV)/installed-mutate
	$(BIN)/python -m benchmarks.mutate $(ROOM)

benchmarks: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.tokenization
	$(BIN)/python -m benchmarks.prepare
	$(BIN)/python -m benchmarks.processes speed
	$(BIN)/python -m benchmarks.processes memory
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.clustering --small
	$(BIN)/python -m benchmarks.tree_scale --fraction 0.05
	$(BIN)/python -m benchmarks.compare Datasets/LF-DebianTitles-small
	$(BIN)/python -m benchmarks.accuracy

# A .venv that is there is used as it is, unless another Python is asked for by name.
same-python: $(VENV)/bin/python
ifneq ($(origin PYTHON),file)
	@wanted=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1; \
		made=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		[ "$$wanted" = "$$made" ] \
		|| { echo "error: $(VENV) was made by Python $$made, not $$wanted; make clean removes it"; exit 1; }
endif

# A stamp newer than the requirements says that the environment is ready: a second run sets nothing up again.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: Python 3.10 or newer is needed; try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' \
		|| { echo "error: $(PYTHON) has no venv module; install it first (Debian, Ubuntu: python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python same-python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-serve.txt requirements-docs.txt $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@

$(VENV)/installed-mutate: requirements-mutate.txt $(VENV)/installed-dev
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-mutate.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
