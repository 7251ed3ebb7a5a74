# All targets work in $(VENV); nothing outside the checkout is changed. `make help` lists the targets.

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
# A distribution's cv_bridge is compiled for its own NumPy and OpenCV, and its launch_testing needs an older pytest.
NUMPY := $(shell $(PYTHON) -c 'import numpy; print(int(numpy.__version__.split(".")[0]) + 1)' 2>/dev/null)
PINS := "numpy<$(or $(NUMPY),3)" "opencv-python-headless<5" "pytest<8.4"
endif

# Without a GPU in nvidia-smi, use the CPU build: the default one installs gigabytes of CUDA libraries.
TORCH_INDEX := $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),,--extra-index-url https://download.pytorch.org/whl/cpu)
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)

# Folders too: their time changes when a file is removed.
SOURCES := $(shell find raymap3r_ros launch config resource -not -name '__pycache__' -not -name '*.pyc' 2>/dev/null)

.PHONY: help test faults soak demo doctor lint clean

help:
	@echo "make test    run all tests; creates the environment $(VENV) if necessary"
	@echo "make faults  run the fault tests in full, see docs/robustness.md"
	@echo "make soak    play 100,000 frames into the node and check for trends; FRAMES=N, SECONDS=S, SOAK='more arguments'"
	@echo "make demo    run the node on a clip and draw its output; CLIP=office|movers|room, CHECKPOINT=cut3r_512, DEMO='more arguments'"
	@echo "make doctor  check this machine: versions, numbers, memory, large messages, speed; DOCTOR='arguments'"
	@echo "make lint    check the code with ruff"
	@echo "make clean   remove the environment and all build products"

test: $(VENV)/.package
	@# Not `python -m pytest`, which puts the checkout before the installed package in the path.
	@# Test files run in parallel processes, each with its own ROS domain.
	@# Ray starts processes of its own, which the other tests would leave no cores.
	$(ROS) $(VENV)/bin/pytest test -n auto --dist loadfile --no-loadscope-reorder --ignore test/offline/test_batch.py
	$(ROS) $(VENV)/bin/pytest test/offline/test_batch.py

faults: $(VENV)/.package
	$(ROS) $(VENV)/bin/pytest test/faults --long

soak: $(VENV)/.package
	$(ROS) $(VENV)/bin/python benchmarks/soak.py $(if $(FRAMES),--frames $(FRAMES)) $(if $(SECONDS),--seconds $(SECONDS)) $(SOAK)

demo: $(VENV)/.package
	$(ROS) $(VENV)/bin/raymap3r demo $(if $(CLIP),--clip $(CLIP)) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(DEMO)

doctor: $(VENV)/.package
	$(ROS) $(VENV)/bin/raymap3r doctor $(DOCTOR)

lint: $(VENV)/.package
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) build/lib build/bdist.* *.egg-info .pytest_cache .ruff_cache demo_out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: sudo apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "$$($(PYTHON) --version) is too old: Python 3.10 or newer is needed (make PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) cannot create virtual environments: sudo apt install python3-venv" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python constraints.txt
	@# The dependencies of torch are installed with the package, from the default index.
	$(PIP) install --retries 1 --no-deps $(TORCH_INDEX) $(TORCH)
	@touch $@

# Before .torch: a missing C compiler is then reported before the large downloads.
$(VENV)/.ros: $(VENV)/.python constraints.txt $(shell find pip_ros -type f -not -name '*.pyc')
	$(ROS) $(VENV)/bin/python pip_ros/install.py
	@touch $@

$(VENV)/.package: $(VENV)/.ros $(VENV)/.torch setup.py setup.cfg pyproject.toml package.xml constraints.txt $(SOURCES)
	$(PIP) install $(PINS) "setuptools>=64" wheel
	@rm -rf build/lib  # otherwise setuptools installs files that were deleted since
	$(PIP) install $(PINS) --no-build-isolation ".[test,weights]"
	@touch $@
