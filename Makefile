# Two commands from a bare clone, on a machine with Python 3.11, 3.12 or 3.13, and pip:
#   make reproduce                  the whole pipeline, then the result table and the path of the report
#   make reproduce PROFILE=NAME     the same with a preset of profiles/; with a list (paper) its presets in turn
#   make test                       lint and the tests, in minutes; make test-all: those that take long, too
#   make audit                      the tables again, from the committed records, in seconds
# And: make lab (JupyterLab), make clean (removes the results of runs, but not reports/, results/ and datasets/).

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The first that is supported; an older python3 is common where a newer one stands beside it.
PYTHON ?= $(or $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $p -c '$(SUPPORTED)' 2>/dev/null && echo $p))),python3)
PRESET := $(if $(PROFILE),profiles/$(PROFILE).yaml,params.yaml)
VENV ?= .venv
# A preset that needs RobustBench says so. Its package asks for an older timm than it needs, so pip must not look at that.
ROBUSTBENCH := $(if $(shell grep -ls '^\# needs: robustbench' $(PRESET)),$(VENV)/.robustbench)
# Stages are run by name, so this environment's python must be the first.
RUN := PATH="$$(cd $(VENV)/bin && pwd):$$PATH"
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
LIST := $(if $(PROFILE),$(wildcard profiles/$(PROFILE).list))

.PHONY: reproduce audit test test-all lint lab clean

# It is made anew when the lock changes. The project is editable: it needs no installation after an edit.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; install one of them," \
		"or give its path: make PYTHON=/path/to/python3.13" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements.lock
	$(PIP) --no-deps --editable .
	git config filter.notebooks.clean "'$$(cd $(VENV)/bin && pwd)/python' -m paper.pipeline.notebooks" || true
	touch $@

$(VENV)/.robustbench: $(VENV)/.installed requirements-robustbench.lock
	$(PIP) --no-deps --requirement requirements-robustbench.lock
	touch $@

# Ray, for the tests of workers; a run needs it where workers are asked for (docs/cluster.md).
$(VENV)/.cluster: $(VENV)/.installed requirements-cluster.lock
	$(PIP) --requirement requirements-cluster.lock
	touch $@

ifeq ($(LIST),)
reproduce: $(VENV)/.installed $(ROBUSTBENCH)
	$(if $(PROFILE),$(RUN) python -m paper profile $(PROFILE))
	$(RUN) python -m paper data
	[ ! -d data ] || $(RUN) dvc commit --quiet data.dvc </dev/null
	$(RUN) dvc repro
	$(RUN) python -m paper results
else
# Finished results stay in results/NAME/; a preset runs again only when its file has changed.
reproduce: $(patsubst %,results/%/index.html,$(shell grep -v '^\#' $(LIST)))
endif

results/%/index.html: profiles/%.yaml
	$(MAKE) reproduce PROFILE=$*
	rm -rf results/$*.part && mkdir -p results/$*.part && cp -R reports/. results/$*.part/
	rm -f results/$*.part/seeds.*  # they are the demo's
	env | sed -n 's/^\(MULTISHIELD_[A-Z0-9_]*\)=\(\/.*\)$$/s|\2|$${\1}|/p' | sed -f - params.yaml >results/$*.part/params.yaml
	rm -rf results/$* && mv results/$*.part results/$* && touch $@
	$(MAKE) results/README.md

# Two processes, each with one thread: in small networks more threads only wait for each other. Files come in their order:
# sorted by their number of tests the slow ones would come last, and one process would wait.
TESTS := pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

test: lint $(VENV)/.cluster
	$(RUN) $(TESTS) -m "not long"

test-all: test
	$(RUN) MULTISHIELD_TEST_ARITHMETIC=native $(TESTS) -m long --durations 0

lint: $(VENV)/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check src tests

# Tables and sentences of reports/ and results/ once more, from the records beside them; it fails where they differ.
audit: $(VENV)/.installed
	$(RUN) python -m paper audit
	$(MAKE) --always-make results/README.md && git diff --exit-code results/README.md

# The results side by side: what each page says first.
results/README.md: $(wildcard results/*/sentences.md results/*/tables/summary.md)
	{ echo '# Results on real images'; for d in results/*/; do n=$$(basename $$d); \
		printf '\n## [%s](%s/index.html)\n\n' $$n $$n; head -n 1 $$d/sentences.md; echo; cat $$d/tables/summary.md; done; } >$@

lab: $(VENV)/.installed
	$(RUN) jupyter lab --config=.jupyter/jupyter_lab_config.py notebooks

clean:
	rm -rf .multishield artifacts
