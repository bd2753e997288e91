# make reproduce-dearkd [SCALE=digits]   train teacher and every row, print the table; likewise the other papers
# make reproduce                         all papers
# make publish-dearkd [SCALE=digits]     keep its tables and figures in docs/results
# make test                              run the whole test suite
# make setup                             .venv with all packages, editable, and the development tools

SCALE ?= digits
PYTHON ?= python3
BIN := .venv/bin
GRAPH := $(if $(filter digits,$(SCALE)),.,scales/$(SCALE))
PACKAGES := core dearkd bootstrapping_vit drloc coadvise mae_lite_distill
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup test lint reproduce

setup: $(BIN)/.ready

$(BIN)/.ready: constraints.txt requirements-dev.txt $(PACKAGES:%=%/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(PACKAGES:%=-e %)
	touch $@

reproduce: $(patsubst %,reproduce-%,$(subst _,-,$(filter-out core,$(PACKAGES))))

reproduce-%: setup
	cd $(GRAPH) && dvc repro report@$(subst -,_,$*)
	vitutor report show $(subst -,_,$*) --folder $(GRAPH)/results

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

publish-%: setup
	vitutor report publish $(subst -,_,$*) --folder $(GRAPH)/results --to docs/results/$(SCALE) \
	    $(if $(filter digits,$(SCALE)),--readme README.md)
