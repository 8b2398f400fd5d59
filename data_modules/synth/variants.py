"""Which of Mitsuba's variants to render with, and what to say when a package is missing."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys

VARIANTS = ("cuda_ad_rgb", "llvm_ad_rgb", "scalar_rgb")
INSTALL_HINT = 'pip install "s2kit[synth]"'
_PROBE_SECONDS = 120
_LLVM_FROM_SAMPLES = 2_000_000


def require_packages() -> None:
    """Check that the packages of the `synth` extra are there, without importing them.

    Raises:
        RuntimeError: naming the missing package and the command that installs it.
    """
    for package in ("anny", "mitsuba"):
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(
                f"synthetic humans need the package {package!r}, which is not installed: {INSTALL_HINT}",
            )


def check_variant(requested: str) -> None:
    """Raise ValueError for a name that is neither a variant nor "auto"."""
    if requested not in ("auto", *VARIANTS):
        raise ValueError(f"variant must be auto, {', '.join(VARIANTS)}; got {requested!r}")


def choose_variant(requested: str = "auto", samples: int = 1 << 30) -> str:
    """Return the variant to render with: the requested one, or the fastest that works on this machine.

    `auto` takes the GPU, else LLVM (Dr.Jit finds it, or DRJIT_LIBLLVM_PATH names it), else `scalar_rgb`. For small
    pictures `scalar_rgb` is faster than LLVM, which compiles a program for nearly every scene.

    Args:
        requested: "auto" or one of VARIANTS.
        samples: paths in a picture: pixels times samples per pixel.

    Raises:
        ValueError: an unknown variant.
        RuntimeError: the requested variant does not work here.
    """
    check_variant(requested)
    if requested == "auto":
        worth = [name for name in VARIANTS[:-1] if samples >= _LLVM_FROM_SAMPLES or name != "llvm_ad_rgb"]
        return next((name for name in worth if variant_works(name)), VARIANTS[-1])
    if requested != "scalar_rgb" and not variant_works(requested):
        hint = (
            "it needs an NVIDIA GPU and its driver"
            if requested.startswith("cuda")
            else "it needs LLVM 16 or newer (Debian: apt-get install libllvm19); "
            "DRJIT_LIBLLVM_PATH may name the library"
        )
        raise RuntimeError(f"variant {requested} does not work on this machine: {hint}; or use scalar_rgb")
    return requested


def child_environment() -> dict[str, str]:
    """Environment of a rendering process: it finds the same modules, and its libraries keep to one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, **threads, "PYTHONPATH": path}


@functools.cache
def variant_works(name: str) -> bool:
    """Try a variant in a process of its own: an unsuited LLVM aborts the process that loads it."""
    try:
        probe = subprocess.run(
            [sys.executable, "-m", "data_modules.synth.probe", name],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env=child_environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0 and probe.stdout.strip() == "works"
