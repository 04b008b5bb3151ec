# make demo    restore the sample photos          make test    lint and test
# The first call makes .venv and installs everything into it; it needs Python 3.10 to 3.12, and nothing else.
# make test PYTEST=--slow    the long tests too
# PYTHON=python3.12 chooses the interpreter. PyTorch comes from PyPI unless that interpreter already has it; another
# build of it: PIP_INDEX_URL=https://download.pytorch.org/whl/cpu .venv/bin/pip install torch torchvision  beforehand.

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: demo test lint install clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/basicsr test -opt options/test_iter.yml
	$(BIN)/basicsr upscale -i datasets/sample/real -o results/real

test: lint
	$(BIN)/python -m pytest $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .

install: $(STAMP)

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null || \
		{ echo "Python 3.10, 3.11 or 3.12 is needed; name one: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $$($(PYTHON) -c 'import torch, torchvision' 2>/dev/null && echo --system-site-packages) $(VENV)

# BasicSR is built outside isolation, for which pip would download PyTorch a second time.
$(STAMP): setup.py pyproject.toml | $(BIN)/python
	$(PIP) 'setuptools<81' wheel cython numpy
	$(PIP) torch torchvision
	$(PIP) --no-build-isolation basicsr==1.4.2
	$(PIP) --no-build-isolation -e '.[test]'
	@# opencv-python and opencv-python-headless share one folder, and only the second works where there is no libGL.
	$(BIN)/python -c 'import cv2' || $(PIP) --force-reinstall --no-deps opencv-python-headless
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
