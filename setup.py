"""Drives CMakeLists.txt; everything else about the package is in pyproject.toml.

Environment: DIN_KERNELS_CUDA=auto|on|off, DIN_KERNELS_CUDA_ARCHITECTURES (CMake's list), CMAKE_ARGS.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CMAKE_OPTIONS = ("DIN_KERNELS_CUDA", "DIN_KERNELS_CUDA_ARCHITECTURES")


def tool(name: str, module_directory: str) -> str:
    """Path of a build tool: its Python package where one is installed, whose scripts need not be on PATH, else PATH."""
    try:
        directory = getattr(importlib.import_module(name), module_directory)
    except (ImportError, AttributeError):
        directory = None
    found = shutil.which(name, path=directory) if directory else None
    found = found or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} must be on PATH or installed as a Python package to build din-kernels")
    return found


class CleanBuildPy(build_py):
    """A wheel holds the files of this version alone: setuptools would keep those of earlier builds."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds every compiled module of the package in one CMake run."""

    def run(self) -> None:
        package = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()) / "din_kernels"
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"  # kept, so that the next build is incremental
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        # Unset options return to their defaults: the build folder remembers those of the last build.
        configure += [f"-D{name}={os.environ[name]}" if name in os.environ else f"-U{name}" for name in CMAKE_OPTIONS]
        subprocess.run(configure + shlex.split(os.environ.get("CMAKE_ARGS", "")), check=True)
        subprocess.run([cmake, "--build", str(build)], check=True)
        for stale in package.glob("_cuda*"):
            if stale.suffix != ".pyi":  # the stubs beside the modules are sources
                stale.unlink()
        subprocess.run([cmake, "--install", str(build), "--prefix", str(package)], check=True)


setup(
    ext_modules=[Extension("din_kernels._cpu", sources=[])],
    cmdclass={"build_py": CleanBuildPy, "build_ext": CMakeBuild},
)
