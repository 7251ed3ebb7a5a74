# Everything happens in $(VENV); nothing outside the checkout is changed. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

# A ROS distribution, sourced or not, supplies all ROS packages; without one, pip_ros/install.py does.
ROS_SETUP := $(if $(ROS_DISTRO),,$(lastword $(sort $(wildcard /opt/ros/*/setup.bash))))
ROS := $(if $(ROS_SETUP),source $(ROS_SETUP);)
ifeq ($(ROS_DISTRO)$(ROS_SETUP),)
PYTHON ?= python3
VENV_FLAGS :=
PINS := -c constraints.txt
else
PYTHON ?= /usr/bin/python3
VENV_FLAGS := --system-site-packages
# A distribution's cv_bridge is compiled for its own NumPy and OpenCV, and its launch_testing for an older pytest.
NUMPY := $(shell $(PYTHON) -c 'import numpy; print(int(numpy.__version__.split(".")[0]) + 1)' 2>/dev/null)
PINS := "numpy<$(or $(NUMPY),3)" "opencv-python-headless<5" "pytest<8.4"
endif

# Where nvidia-smi finds no GPU, the CPU build: the default one brings gigabytes of CUDA.
TORCH_INDEX := $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),,--extra-index-url https://download.pytorch.org/whl/cpu)
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)

# With the folders, which change when a file goes.
SOURCES := $(shell find raymap3r_ros launch config resource -not -name '__pycache__' -not -name '*.pyc' 2>/dev/null)

.PHONY: help test faults soak demo lint clean

help:
	@echo "make test    make the environment in $(VENV) if need be, and run the tests"
	@echo "make faults  the fault tests in full: docs/robustness.md tells what is done"
	@echo "make soak    play 100,000 frames into the node and look for trends; FRAMES=N, SECONDS=S, SOAK='more arguments'"
	@echo "make demo    make the environment in $(VENV) if need be, and show what the package does"
	@echo "make lint    check the style of the code"
	@echo "make clean   remove the environment and everything that was built"

test: $(VENV)/.package
	@# The script, not `python -m`, which would put the checkout before the installed package.
	@# Files share the cores; each process has a ROS domain of its own.
	$(ROS) $(VENV)/bin/pytest test -n auto --dist loadfile --no-loadscope-reorder

faults: $(VENV)/.package
	$(ROS) $(VENV)/bin/pytest test/faults --long

soak: $(VENV)/.package
	$(ROS) $(VENV)/bin/python benchmarks/soak.py $(if $(FRAMES),--frames $(FRAMES)) $(if $(SECONDS),--seconds $(SECONDS)) $(SOAK)

demo: $(VENV)/.package
	$(ROS) $(VENV)/bin/raymap3r demo

lint: $(VENV)/.package
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) build/lib build/bdist.* *.egg-info .pytest_cache .ruff_cache demo_out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): sudo apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "$$($(PYTHON) --version) is too old: Python 3.10 or newer is needed (make PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments: sudo apt install python3-venv" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python constraints.txt
	@# What torch itself needs comes with the package, from the usual index.
	$(PIP) install --retries 1 --no-deps $(TORCH_INDEX) $(TORCH)
	@touch $@

# The C compiler that this asks for is asked for early, before the large downloads.
$(VENV)/.ros: $(VENV)/.python constraints.txt $(shell find pip_ros -type f -not -name '*.pyc')
	$(ROS) $(VENV)/bin/python pip_ros/install.py
	@touch $@

$(VENV)/.package: $(VENV)/.ros $(VENV)/.torch setup.py setup.cfg pyproject.toml package.xml constraints.txt $(SOURCES)
	$(PIP) install $(PINS) "setuptools>=64" wheel
	@rm -rf build/lib  # setuptools would install what was deleted since
	$(PIP) install $(PINS) --no-build-isolation ".[test]"
	@touch $@
