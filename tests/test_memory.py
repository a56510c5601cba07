"""Freed memory is kept where that is wanted, and left alone where it is not."""

import subprocess
import sys

import pytest

# Counts page faults of taking, touching and freeing 64 MB ten times.
PROGRAM = """
import resource, sys
from mmjax.memory import keep_freed_memory
import numpy as np
told = keep_freed_memory()
np.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(8_000_000)
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    clean = {"PATH": "/usr/bin:/bin", "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    told, faults = done.stdout.split()
    return told == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's options")
def test_pages_are_not_cleared_again():
    told, faults = run(JAX_PLATFORMS="cpu")
    if not told:
        pytest.skip("no glibc")
    assert faults < 1000
    assert run(JAX_PLATFORMS="cpu", MALLOC_TOP_PAD_="0") == (False, pytest.approx(156_000, rel=0.5))


def test_a_machine_with_an_accelerator_is_left_alone(monkeypatch):
    from mmjax import memory

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(memory, "_ACCELERATORS", ("/dev/nul*",))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("glibc was told"))
    assert not memory.keep_freed_memory()
