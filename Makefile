# make reproduce-dearkd [SCALE=scenes]   train teachers and every row, print the table; likewise the other papers
# make reproduce                         all papers
# make publish-dearkd [SCALE=scenes]     keep its tables and figures in docs/results; of SCALE=small also on its first page
# make compare [SCALE=scenes] [METHODS=a,b] [COMPOSE=all]   one student by every method, on one budget;
#                                        without METHODS into docs/results/compare
# make test | lint                       run the whole test suite | ruff, mypy, import contracts, the graphs
# make faults                            inject faults, count what became of them, write docs/reliability.md
# make site                                the pages of docs as a site, in build/website/site
# make setup                             .venv with all packages, editable, and the development tools
# make graph                             write the dvc.yaml of each scale again, after a change of recipes
#
# What is run may be set once, and stays in the scale's params.yaml:
# make reproduce-dearkd SEEDS=0,1,2,3,4 PRESET=official GPUS=8 GROUPS=core,cars ROWS="vit dearkd" SET=train.accumulate=4
# AVAILABLE=1 leaves out the rows that cannot run here, for want of data, weights or network; `vitutor ready` lists them.

SCALE ?= scenes
PYTHON ?= python3
BIN := .venv/bin
SCALES := scenes small cifar100 imagenet
GRAPH := $(if $(filter digits,$(SCALE)),.,scales/$(SCALE))
PAPERS := $(filter-out core,$(patsubst %/pyproject.toml,%,$(wildcard */pyproject.toml)))
PARAMS := $(if $(SEEDS),seeds="$(SEEDS)") $(if $(PRESET),preset="$(PRESET)") $(if $(GPUS),processes="$(GPUS)") \
    $(if $(GROUPS),groups="$(GROUPS)") $(if $(ROWS),rows="$(ROWS)") $(if $(SET),set="$(SET)")
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup test lint faults graph site reproduce compare

setup: $(BIN)/.ready

$(BIN)/.ready: constraints.txt requirements-dev.txt core/pyproject.toml $(PAPERS:%=%/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e core $(PAPERS:%=-e %)
	touch $@

reproduce: $(patsubst %,reproduce-%,$(subst _,-,$(PAPERS)))

reproduce-%: setup
	$(if $(strip $(PARAMS)),vitutor params $(strip $(PARAMS)) --params $(GRAPH)/params.yaml)
	vitutor ready $(subst -,_,$*) $(if $(AVAILABLE),--choose) --params $(GRAPH)/params.yaml
	cd $(GRAPH) && dvc repro report@$(subst -,_,$*)
	vitutor report show $(subst -,_,$*) --results $(GRAPH)/results

compare: setup
	vitutor compare --scale $(SCALE) --out $(GRAPH)/results/compare $(if $(METHODS),,--publish docs/results/compare) \
	    $(if $(SEEDS),--seeds $(SEEDS)) $(if $(METHODS),--methods $(METHODS)) $(if $(COMPOSE),--compose $(COMPOSE))

# Without Python's caches of what it compiles, each process of the tests would compile all modules anew.
test: export PYTHONDONTWRITEBYTECODE =
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	vitutor graph --check && $(foreach scale,$(SCALES),vitutor graph --scale $(scale) --folder scales/$(scale) --check &&) true

faults: setup
	$(BIN)/python -m conformance.faults

graph: setup
	vitutor graph && $(foreach scale,$(SCALES),vitutor graph --scale $(scale) --folder scales/$(scale) &&) true

site: setup
	$(BIN)/python -m website

publish-%: setup
	vitutor report publish $(subst -,_,$*) --results $(GRAPH)/results --to docs/results/$(SCALE) \
	    $(if $(filter small,$(SCALE)),--readme docs/results/README.md)
