# Everything below runs in a virtual environment that it makes itself. `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
# Any pip arguments. Without a GPU, PyTorch's CPU build of this version is enough and far smaller.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/.dependencies
BUILT := $(VENV)/.built-cuda-$(or $(DIN_KERNELS_CUDA),auto)
NATIVE := setup.py CMakeLists.txt $(wildcard cmake/*) $(shell find csrc -type f)
FORMATTED := $(filter %.cpp %.cu %.cuh %.h,$(NATIVE))

.PHONY: demo test lint format bench build clean

demo: $(BUILT)
	$(BIN)/din-kernels demo $(if $(DATA),--data $(DATA))

test: $(BUILT) lint
	$(BIN)/pytest -q python_tests

lint: $(BUILT)
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(BUILT)
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .
	$(BIN)/clang-format -i $(FORMATTED)

bench: $(BUILT)
	$(BIN)/din-kernels bench

build: $(BUILT)

# Editable: a changed Python file needs no build. test_build.py checks that a wheel holds the same files.
$(BUILT): $(DEPENDENCIES) $(NATIVE)
	rm -f $(VENV)/.built-*
	$(BIN)/pip install -q --no-build-isolation -e '.[test,lint]'
	touch $@

$(DEPENDENCIES): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q 'setuptools>=77' 'pybind11>=2.13' 'cmake>=3.24' ninja $(TORCH)
	touch $@

clean:
	rm -rf build dist *.egg-info din_kernels/*.so din_kernels/_build_info.py $(VENV)/.built-*
