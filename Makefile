# make demo    restore the sample photos          make test    lint and test
# The first call makes .venv and installs everything into it; it needs Python 3.10 to 3.13, and nothing else.
# make quick   lint, unit and property tests without the long ones      make test PYTEST=--slow    the slow tests too
# make docs    build the documentation into build/docs
# PYTHON=python3.13 chooses the interpreter. PyTorch comes from PyPI unless that interpreter already has it; another
# build of it: PIP_INDEX_URL=https://download.pytorch.org/whl/cpu .venv/bin/pip install torch torchvision  beforehand.

FITS := -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do $$p $(FITS) && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
STAMP := $(VENV)/.installed
# Two processes of one thread each, a test file at a time.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test quick lint install docs clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/basicsr test -opt options/test_iter.yml
	$(BIN)/basicsr upscale -i datasets/sample/real -o results/real

test: lint
	$(TESTS) $(PYTEST)

quick: lint
	$(TESTS) tests/unit tests/property -m "not long" $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .

install: $(STAMP)

docs: $(STAMP)
	$(BIN)/python -c 'import mkdocstrings_handlers.python' 2>/dev/null || $(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(BIN)/python:
	@"$(PYTHON)" $(FITS) || { echo "Python 3.10 to 3.13 is needed; name one: make PYTHON=/path/to/python3.13"; exit 1; }
	$(PYTHON) -m venv $$($(PYTHON) -c 'import torch, torchvision' 2>/dev/null && echo --system-site-packages) $(VENV)

$(STAMP): setup.py pyproject.toml | $(BIN)/python
	$(PIP) torch torchvision
	$(BIN)/python -m basicsr_compat.install
	$(PIP) -e '.[test]'
	@# opencv-python and opencv-python-headless share one folder, and only the second works where there is no libGL.
	$(BIN)/python -c 'import cv2' || $(PIP) --force-reinstall --no-deps opencv-python-headless
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
