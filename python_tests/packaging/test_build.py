"""The build: what a wheel holds, what it records about CUDA, and that kernels of different ISAs share no symbol."""

import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import din_kernels
from din_kernels import _build_info

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("csrc", "cmake", "din_kernels", "CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE")

needs_checkout = pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the sources of the package")
needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="needs a C++ compiler (CXX, or c++ on PATH)"
)


def without_nvcc() -> dict[str, str]:
    """The environment with no nvcc in it; compilers that share a folder with nvcc are named instead."""
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "nvcc").exists()]
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_HOME")}
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    return environment | {"PATH": os.pathsep.join(folders), "CXX": compiler}


def configure(build: Path, *options: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    pybind11 = pytest.importorskip("pybind11")
    setup_tool = build_tools()
    command = [
        setup_tool("cmake", "CMAKE_BIN_DIR"),
        "-S",
        str(ROOT),
        "-B",
        str(build),
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={setup_tool('ninja', 'BIN_DIR')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *options,
    ]
    return subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def build_tools():
    """setup.py's own search for cmake and ninja."""
    setuptools = pytest.importorskip("setuptools")
    called, setuptools.setup = setuptools.setup, lambda **_: None
    try:
        tool = runpy.run_path(str(ROOT / "setup.py"))["tool"]
    finally:
        setuptools.setup = called
    try:
        tool("cmake", "CMAKE_BIN_DIR"), tool("ninja", "BIN_DIR")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    return tool


@pytest.fixture(scope="module")
def build_without_nvcc(tmp_path_factory):
    build = tmp_path_factory.mktemp("without_nvcc")
    done = configure(build, "-DDIN_KERNELS_CUDA=auto", env=without_nvcc())
    assert done.returncode == 0, done.stdout
    return build


@needs_checkout
@needs_compiler
def test_auto_without_nvcc_builds_no_cuda_module_and_records_why(build_without_nvcc):
    info = runpy.run_path(str(build_without_nvcc / "_build_info.py"))
    assert info["CUDA_BUILT"] is False
    assert info["CUDA_REASON"].startswith("nvcc not found")
    assert info["CUDA_ARCHITECTURES"] == ()


@needs_checkout
@needs_compiler
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("on", "DIN_KERNELS_CUDA=on, but nvcc not found"),
        ("maybe", "must be auto, on or off, got 'maybe'"),
    ],
)
def test_a_value_of_din_kernels_cuda_that_cannot_hold_is_an_error_that_says_why(value, said, tmp_path):
    done = configure(tmp_path, f"-DDIN_KERNELS_CUDA={value}", env=without_nvcc())
    assert done.returncode != 0
    assert said in " ".join(done.stdout.split())


@needs_checkout
@needs_compiler
def test_objects_of_an_isa_export_only_symbols_of_its_namespace_and_no_weak_ones(build_without_nvcc):
    if not shutil.which("nm"):
        pytest.skip("needs nm")
    isas = runpy.run_path(str(build_without_nvcc / "_build_info.py"))["ISAS"]
    targets = [f"kernels_{isa}" for isa in isas]
    cmake = build_tools()("cmake", "CMAKE_BIN_DIR")
    subprocess.run([cmake, "--build", str(build_without_nvcc), "--target", *targets], check=True)
    for isa in isas:
        objects = sorted((build_without_nvcc / "CMakeFiles" / f"kernels_{isa}.dir").rglob("*.o"))
        assert objects
        for path in objects:
            listed = subprocess.run(["nm", "-C", "--defined-only", path], check=True, text=True, capture_output=True)
            # "address type name"; a lower-case type is local, V and W are weak, u is unique over the whole process.
            symbols = [line.split(maxsplit=2)[1:] for line in listed.stdout.splitlines()]
            exported = [(kind, name) for kind, name in symbols if kind.isupper() or kind == "u"]
            assert exported, path
            assert [s for s in exported if s[0] in "VWu" or not s[1].startswith(f"din_kernels::cpu::{isa}::")] == []


@needs_checkout
@needs_compiler
def test_wheel_without_cuda_holds_every_file_and_runs_without_torch(tmp_path):
    build_tools()
    source = tmp_path / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.py")
    for name in SOURCES:
        path = ROOT / name
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, source]
    unoptimized = "-DCMAKE_CXX_FLAGS_RELEASE=-O0"  # what the files hold, not how they run
    done = subprocess.run(
        command, env=os.environ | {"DIN_KERNELS_CUDA": "off", "CMAKE_ARGS": unoptimized}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    package = unpacked / "din_kernels"
    compiled = (".so", ".pyd")
    built = {path for path in package.glob("_*") if path.suffix in compiled or path.name == "_build_info.py"}
    assert sorted(path.name.partition(".")[0] for path in built) == ["_build_info", "_cpu", "_cuda_emulated"]
    held = {str(path.relative_to(unpacked)) for path in package.rglob("*") if path.is_file() and path not in built}
    assert held == {str(path.relative_to(source)) for path in (source / "din_kernels").rglob("*") if path.is_file()}
    info = runpy.run_path(str(package / "_build_info.py"))
    assert (info["CUDA_BUILT"], info["CUDA_REASON"]) == (False, "DIN_KERNELS_CUDA=off")
    script = "import sys, _cpu; print(_cpu.isa()); assert not {'torch', 'numpy'} & set(sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], cwd=package, check=True, text=True, capture_output=True)
    assert ran.stdout.strip() in info["ISAS"]


def test_cuda_module_imports_with_or_without_a_gpu_and_says_why_there_is_none():
    if not _build_info.CUDA_BUILT:
        assert _build_info.CUDA_REASON
        pytest.skip(f"no CUDA module: {_build_info.CUDA_REASON}")
    from din_kernels import _cuda

    info = _cuda.device_info()
    assert info["runtime_version"] >= 12000
    assert _cuda.device_count() == len(info["devices"])
    assert (info["unavailable"] == "") == (len(info["devices"]) > 0)


def test_versions_agree():
    assert din_kernels.__version__ == importlib.metadata.version("din-kernels")


def test_import_and_op_work_without_triton():
    script = """
import sys
sys.modules["triton"] = None  # import raises ModuleNotFoundError
import torch, din_kernels
history = din_kernels.Jagged(torch.randn(5, 4), torch.tensor([0, 2, 5]))
pooled = din_kernels.local_activation(torch.randn(2, 4), history, [torch.randn(1, 16)], [torch.randn(1)])
assert pooled.shape == (2, 4)
assert din_kernels.backends.available()["triton"]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
