# Set-up is two commands, on a machine that has Python 3.11 or newer and make:
#
#   make demo    installs treadle into .venv and runs the example
#   make test    everything CI checks, on this Python and on the newest other one found
#
# Variables: PYTHON=/path/to/python3  VENV=.venv  ARGS="-k cache" (for unit)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint types unit unit-other bench clean

VENV = .venv
ARGS =
PY = $(VENV)/bin/python
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check

# Candidates are run, not looked up: version managers put shims on the PATH that fail when they are called, and some
# distributions ship a Python without ensurepip, which cannot make a virtual environment.
usable = import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
find_python = for python in python3 python3.11 python3.12 python3.13 python3.14 python $$HOME/.pyenv/versions/3.*/bin/python; do \
	"$$python" -c '$(usable)' 2>/dev/null && { command -v "$$python"; break; }; done
PYTHON = $(shell $(find_python))

# Prints "3.13 /path/to/python" for a released Python that the dependencies have wheels for. The second line of the
# answer is the newest one that is not the version of $(VENV).
describe = import sys, ensurepip, sysconfig, venv; v = sys.version_info; \
	fit = (3, 12) <= v < (3, 15) and v.releaselevel == "final" and not sysconfig.get_config_var("Py_GIL_DISABLED"); \
	fit and print("%d.%d %s" % (*v[:2], sys.executable))
find_other = own=$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	for python in python3.14 python3.13 python3.12 $$HOME/.pyenv/versions/3.1*/bin/python; do \
	"$$python" -c '$(describe)' 2>/dev/null; done | grep -v "^$$own " | sort -t . -k 2,2nr | head -n 1

help:
	@sed -n 's/^#   make/make/p' Makefile
	@echo "make lint | types | unit | bench | clean"

demo: $(VENV)/.examples
	$(PY) docs/examples/digits.py
	$(PY) docs/examples/digits.py --kill

test: lint types unit unit-other

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports

types: $(VENV)/.dev
	$(PY) -m mypy
	$(PY) -m pyright --pythonpath $(PY)

unit: $(VENV)/.dev
	$(PY) -m pytest --numprocesses auto --dist loadfile --doctest-modules tests engine/treadle adapters $(ARGS)

unit-other: $(VENV)/.dev
	@other="$$($(find_other))"; if [ -n "$$other" ]; then \
		$(MAKE) --no-print-directory unit VENV=".venv-$${other%% *}" PYTHON="$${other#* }"; \
	else \
		echo "SKIPPED the second Python: none of 3.12, 3.13, 3.14 beside $$($(PY) -V) on the PATH or in ~/.pyenv/versions"; \
	fi

bench: $(VENV)/.dev
	$(PY) -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-* build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# The stamps: an install is repeated when pyproject.toml has changed, and only then.
$(VENV)/.dev: pyproject.toml $(VENV)/.made
	@echo "installing treadle and the tools of CI into $(VENV) (again only when pyproject.toml changes)"
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.examples $@

$(VENV)/.examples: pyproject.toml $(VENV)/.made
	@echo "installing treadle and what the examples need into $(VENV) (again only when pyproject.toml changes)"
	$(PIP_INSTALL) --editable '.[examples]'
	@touch $@

$(VENV)/.made:
	@python="$(PYTHON)"; if ! "$${python:-false}" -c '$(usable)' 2>/dev/null; then \
		echo "treadle needs Python 3.11 or newer that can make a virtual environment, and found $${python:-none}." >&2; \
		echo "Install one (on Debian and Ubuntu also python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	if [ -n "$$(ls -A $(VENV) 2>/dev/null)" ] && [ ! -e $(VENV)/.making ]; then \
		echo "$(VENV) is there and was not made by make, so it is left as it is." >&2; \
		echo "Name another place, make $(MAKECMDGOALS) VENV=.venv-mine, or remove it yourself." >&2; \
		exit 1; \
	fi; \
	echo "making $(VENV) with $$python ($$("$$python" -V))"; \
	rm -rf $(VENV) && mkdir -p $(VENV) && touch $(VENV)/.making && "$$python" -m venv $(VENV) && rm $(VENV)/.making
	@touch $@
