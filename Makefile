# Everything from a fresh clone: `make run` and `make test` each set up what they need.
# On Windows and macOS use the pip lines in README.md; this file is for Linux.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that share the tests; each needs about 2 GB.
WORKERS ?= 2
STAMP := $(VENV)/.installed
DEBIAN := libegl1 libgl1 libdbus-1-3 libfontconfig1 libglib2.0-0 libxkbcommon-x11-0 \
  libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-shape0 xvfb xauth

.PHONY: run test test-quick setup system-libraries lint docs-screenshots benchmarks nuclei-unet \
  oracles clean

run: setup
	@if [ -n "$$DISPLAY" ] || [ -n "$$WAYLAND_DISPLAY" ]; then \
	  $(BIN)/segdesk app --sample; \
	else \
	  echo "There is no display here, so this runs 'segdesk demo', the same job without a window."; \
	  rm -rf demo-out && $(BIN)/segdesk demo --out demo-out; \
	fi

# Modules are compiled once, whatever the environment says: the tests start hundreds of processes.
test: export PYTHONDONTWRITEBYTECODE :=
# Whoever finishes early takes tests from the other: some take minutes, most milliseconds.
test: setup lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Without lint, and without the tests that take over ten seconds each.
test-quick: export PYTHONDONTWRITEBYTECODE :=
test-quick: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m npe2 validate segdesk

setup: system-libraries $(STAMP)

# The pins keep torch's and Qt's known-bad releases out (see constraints.txt).
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[app,cluster,test]'
	touch $(STAMP)

# Qt and OpenGL need a few libraries that a bare Debian lacks.
system-libraries:
	@if command -v dpkg-query >/dev/null 2>&1; then \
	  missing=""; \
	  for package in $(DEBIAN); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q "install ok installed" \
	      || missing="$$missing $$package"; \
	  done; \
	  $(PYTHON) -c "import ensurepip, venv" 2>/dev/null || missing="$$missing python3-venv"; \
	  if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ]; then \
	      echo "Installing$$missing"; \
	      apt-get update -qq && \
	      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	    else \
	      echo "Some system libraries are missing. Run this line once, then try again:"; \
	      echo "  sudo apt-get install -y$$missing"; \
	      exit 1; \
	    fi; \
	  fi; \
	fi

# Speed, as ratios side by side; not part of `make test`.
benchmarks: setup
	xvfb-run -a -s "-screen 0 1600x1000x24" $(BIN)/python tests/benchmarks/startup.py

docs-screenshots: setup
	xvfb-run -a -s "-screen 0 1600x1000x24" $(BIN)/python docs/make_screenshots.py

# Train the shipped model again: make nuclei-unet DATA=folder-of-nuclei
nuclei-unet: setup
	$(BIN)/python models/make_nuclei_unet.py --data $(DATA)

# Compare the architectures with independent implementations, and freeze their answers
# for the default tests. In an environment of its own: they bring a lot along.
ORACLES := .venv-oracles
oracles: system-libraries
	test -x $(ORACLES)/bin/python || $(PYTHON) -m venv $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet -c constraints.txt -e '.[oracle]'
	SEGDESK_FREEZE=1 $(ORACLES)/bin/python -m pytest -p no:cacheprovider \
	  -o qt_api= -o addopts=--import-mode=importlib --confcutdir=tests/oracles tests/oracles

clean:
	rm -rf $(VENV) .venv-oracles build dist demo-out .mypy_cache .ruff_cache .pytest_cache
