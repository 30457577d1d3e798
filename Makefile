# Two commands from a bare clone, on a machine with Python 3.11 and pip:
#   make reproduce                  the whole pipeline, then the result table and the path of the report
#   make reproduce PROFILE=NAME     the same with a preset of profiles/; with a list (paper) its presets in turn
#   make test                       lint and the tests, in minutes; make test-all: those that take long, too
# And: make lab (JupyterLab), make clean (remove what runs have made; not reports/, results/ and datasets/).

PYTHON ?= python3.11
PRESET := $(if $(PROFILE),profiles/$(PROFILE).yaml,params.yaml)
VENV ?= .venv
# A preset that needs RobustBench says so. Its package asks for an older timm than it needs: pip must not look at that.
ROBUSTBENCH := $(if $(shell grep -ls '^\# needs: robustbench' $(PRESET)),$(VENV)/.robustbench)
BIN := $(abspath $(VENV))/bin
# Stages are run by name: they must find this environment's python first.
RUN := PATH="$(BIN):$$PATH"
LIST := $(if $(PROFILE),$(wildcard profiles/$(PROFILE).list))

.PHONY: reproduce test test-all lint lab clean

# Made anew when the lock changes. The package itself is editable: no reinstall after an edit.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit("error: Python %d.%d was found, Python 3.11 is needed: give its path, make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.robustbench: $(VENV)/.installed requirements-robustbench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-robustbench.lock
	touch $@

# Ray, for the tests of workers; a run needs it where workers are asked for (docs/cluster.md).
$(VENV)/.cluster: $(VENV)/.installed requirements-cluster.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-cluster.lock
	touch $@

ifeq ($(LIST),)
reproduce: $(VENV)/.installed $(ROBUSTBENCH)
	$(if $(PROFILE),$(RUN) multishield profile $(PROFILE))
	$(RUN) multishield data
	$(RUN) multishield check
	[ ! -d data ] || $(RUN) dvc commit --quiet data.dvc </dev/null
	$(RUN) dvc repro
	$(RUN) multishield results
else
# What is finished is kept in results/NAME/ and not run again, unless its preset has changed.
reproduce: $(patsubst %,results/%/index.html,$(shell grep -v '^\#' $(LIST)))
endif

results/%/index.html: profiles/%.yaml
	$(MAKE) reproduce PROFILE=$*
	rm -rf results/$*.part && mkdir -p results/$*.part && cp -R reports/. params.yaml results/$*.part/
	rm -rf results/$* && mv results/$*.part results/$* && touch $@

# Two processes, each with one thread: more threads in small networks only wait for each other. Files in their order: by
# their number of tests the few that take long would come last, and one process would wait.
TESTS := pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

test: lint $(VENV)/.cluster
	$(RUN) $(TESTS) -m "not long"

test-all: test
	$(RUN) MULTISHIELD_TEST_ARITHMETIC=native $(TESTS) -m long --durations 0

lint: $(VENV)/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check src tests

lab: $(VENV)/.installed
	$(RUN) jupyter lab notebooks

clean:
	rm -rf .multishield artifacts
