# Every target sets up what it needs: a clone, Python 3.11 or later and make are enough.
# Variables to override on the command line:
#   PYTHON=python3.12   the interpreter the environments are made with
#   PYTEST_ARGS="-k xglm"   BENCH_ARGS="--shape small"   DEMO_OUTPUT=somewhere

PYTHON      ?= python3
DEMO_OUTPUT ?= demo_output
PYTEST_ARGS ?=
BENCH_ARGS  ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
# The peers need environments of their own. They live below .venv so that one ignore rule and one
# `make distclean` cover all three.
PEER4 := $(VENV)/peers/transformers4
PEER5 := $(VENV)/peers/transformers5
PEER4_REQUIREMENTS := tests/reference/requirements.txt
PEER5_REQUIREMENTS := benchmarks/requirements-transformers5.txt

# Warnings and errors only; the echo lines below say what is going on meanwhile.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# The line of a requirements file that pins torch. torch goes in first and alone, always pinned:
# left to the resolver, it may come in as another build with gigabytes of GPU libraries.
torch_pin = $$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' $(1))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test lint bench help clean distclean

# Timings beside other work mean nothing, and cleaning while building breaks both.
ifneq (,$(filter bench clean distclean,$(MAKECMDGOALS)))
.NOTPARALLEL:
endif

help: ## show this list
	@echo "make targets:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

demo: $(STAMP) ## train, convert, verify, generate, fill in; writes demo_output/report.html
	$(BIN)/xlmfam demo --output $(DEMO_OUTPUT)

test: $(STAMP) ## run the test suite on two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP) ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) $(PEER4)/.installed $(PEER5)/.installed ## compare speed and memory with transformers
	$(BIN)/python benchmarks/run.py --ours $(BIN)/python \
	  --peer4 $(PEER4)/bin/python --peer5 $(PEER5)/bin/python $(BENCH_ARGS)

clean: ## remove caches and everything the targets wrote, keep the environments
	rm -rf $(DEMO_OUTPUT) benchmarks/out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environments too
	rm -rf $(VENV) xlmfam.egg-info

# The stamp is touched last, so that a setup that was interrupted is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "The pinned versions need Python 3.11 or later: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "setup 1/3: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup 2/3: $(call torch_pin,constraints.txt) (a large download the first time)"
	@$(BIN)/python $(PIP_INSTALL) "$(call torch_pin,constraints.txt)"
	@echo "setup 3/3: xlmfam with TensorFlow, JAX, XLM's word splitters and the test tools (some minutes the first time)"
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[all,zh,ja,th,test,lint]"
	@touch $@

$(PEER4)/.installed: $(PEER4_REQUIREMENTS)
$(PEER5)/.installed: $(PEER5_REQUIREMENTS)
$(PEER4)/.installed $(PEER5)/.installed:
	@echo "setup: peer environment $(@D) from $<"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python $(PIP_INSTALL) "$(call torch_pin,$<)"
	@$(@D)/bin/python $(PIP_INSTALL) -r $<
	@touch $@
