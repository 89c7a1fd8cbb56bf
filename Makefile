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

.PHONY: demo test test-triton cubins test-cuda-emulated test-cuda-sanitized test-cpu-sanitized test-cpu-threads test-gpu gpu-check lint format docs bench
.PHONY: build clean kernel-costs kernel-costs-check

demo: $(BUILT)
	$(BIN)/din-kernels demo $(if $(DATA),--data $(DATA))

test: $(BUILT) lint
	$(BIN)/pytest -q python_tests -m "not full"

# Every combination of options, by Triton's interpreter; `test` runs a representative set.
test-triton: $(BUILT)
	TRITON_INTERPRET=1 $(BIN)/pytest -q python_tests/triton/triton_interpreted.py

# Every Triton kernel compiled for sm_80, sm_89, sm_90 and sm_100, no GPU needed; writes docs/results/triton_cubins.md.
cubins: $(BUILT)
	$(BIN)/python tools/triton_cubins.py

# Instructions and predicted time of every Triton kernel at the house shapes, no GPU needed; writes
# docs/results/kernel_costs.md and .json. The check, which .ci/run makes, fails where a count rose by more than 5 %.
kernel-costs: $(BUILT)
	$(BIN)/python tools/kernel_costs.py

kernel-costs-check: $(BUILT)
	$(BIN)/python tools/kernel_costs.py --check

# On a machine with a GPU: build, GPU tests, benchmarks, one JSON, in 5 minutes; CHECK holds options, as `--full` or
# `--parts dice`. With $(PYTHON) where its torch sees the GPU, so that no network is needed; else with the virtual
# environment (TORCH must name a CUDA build then).
gpu-check:
	if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; \
	then $(PYTHON) tools/gpu_check.py $(CHECK); \
	else $(MAKE) build && $(BIN)/python tools/gpu_check.py --no-build $(CHECK); fi

# Every test that needs a GPU, with every combination of options; `gpu-check` runs a representative set. With what is
# installed beside $(PYTHON); pytest-xdist, where it is, spreads the compilations.
test-gpu:
	$(PYTHON) -m pytest -q -m gpu $(if $(shell $(PYTHON) -c 'import xdist' 2> /dev/null && echo yes),-n auto) python_tests

# The correctness suite on backend `cuda`, emulated on the CPU; `test` has a representative part of it.
test-cuda-emulated: $(BUILT)
	DIN_KERNELS_CUDA_EMULATE=1 $(BIN)/pytest -q python_tests/cuda
	DIN_KERNELS_CUDA_EMULATE=1 $(BIN)/pytest -q python_tests --ignore python_tests/cuda \
	    -k "cuda and (equals_the_reference or equal_the_reference)"

# The emulated CUDA kernels once more under AddressSanitizer and UndefinedBehaviorSanitizer. Python knows no exceptions of
# C++: without libstdc++ the sanitizer would not find what throws them.
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined;-fno-sanitize-recover=all;-O1;-g
SANITIZED_PYTEST := LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=python_tests/support $(BIN)/pytest -q -p modules_from
define build_sanitized
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_BUILD_TYPE=Release -DDIN_KERNELS_CUDA=off \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	    -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) "-DDIN_KERNELS_EMULATION_FLAGS=$(SANITIZERS)" \
	    "-DDIN_KERNELS_CPU_FLAGS=$(SANITIZERS);-DDIN_KERNELS_POISON" "-DDIN_KERNELS_ISAS=$$($(BIN)/python -c \
	    "from din_kernels import _cpu; print(*dict.fromkeys(['baseline', _cpu.supported_isas()[-1]]), sep=';')")"
	$(BIN)/cmake --build $(SANITIZED) --target $(1)
endef
test-cuda-sanitized: $(BUILT)
	$(call build_sanitized,_cuda_emulated)
	DIN_KERNELS_EMULATION=$$(ls $(SANITIZED)/csrc/cuda_emulation/_cuda_emulated*.so) $(SANITIZED_PYTEST) \
	    python_tests/cuda/test_dice.py python_tests/cuda/test_sparse.py python_tests/cuda/test_local_activation.py

# The CPU core under the same sanitizers, on the widest instruction set of this machine, whose loads reach furthest. Its
# scratch is as long as asked for and holds signalling NaNs. SELECT is pytest's -k; .ci/run takes a representative part.
SELECT ?= (cpu or core) and not (compile or opcheck or isa or real or written_before)
test-cpu-sanitized: $(BUILT)
	$(call build_sanitized,_cpu)
	DIN_KERNELS_CORE=$$(ls $(SANITIZED)/_cpu*.so) $(SANITIZED_PYTEST) python_tests/cpu/test_core.py \
	    python_tests/local_activation python_tests/dice python_tests/mba_penalty python_tests/sparse_update -k "$(SELECT)"

# Every op of the CPU core on std::thread under ThreadSanitizer, called by several threads at once.
test-cpu-threads:
	mkdir -p build
	c++ -std=c++17 -O1 -g -fsanitize=thread -DDIN_KERNELS_STD_THREADS -DDIN_KERNELS_ISA=baseline \
	    -Icsrc/include -Icsrc/cpu $(filter-out csrc/cpu/tests/%,$(wildcard csrc/cpu/*/*.cpp)) csrc/cpu/tests/threads.cpp -pthread -o build/threads
	build/threads

lint: $(BUILT)
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/mypy

format: $(BUILT)
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .
	$(BIN)/clang-format -i $(FORMATTED)

# The documentation and the reference made from docstrings as one site in build/site. Strict: a broken link or anchor, a
# missing docstring, a public name or page that is left out fails.
docs: $(BUILT)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(BUILT)
	$(BIN)/din-kernels bench

build: $(BUILT)

# Editable: a changed Python file needs no build. test_build.py checks that a wheel holds the same files.
$(BUILT): $(DEPENDENCIES) $(NATIVE)
	rm -f $(VENV)/.built-*
	$(BIN)/pip install -q --no-build-isolation -e '.[test,lint,docs]'
	touch $@

$(DEPENDENCIES): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q 'setuptools>=77' 'pybind11>=2.13' 'cmake>=3.24' ninja $(TORCH)
	touch $@

clean:
	rm -rf build dist *.egg-info din_kernels/*.so din_kernels/_build_info.py $(VENV)/.built-*
