"""Freed memory is kept where that is wanted, and left alone where it is not."""

import subprocess
import sys

import pytest

# Counts page faults of taking, touching and freeing 64 MB ten times.
PROGRAM = """
import resource, sys
from mmjax.memory import keep_freed_memory, release_memory
import numpy as np
told = keep_freed_memory()
np.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(8_000_000)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(open("/proc/self/statm").read().split()[1]) // 256


# What lies above holds the heap's end up.
large, above = np.ones(32_000_000), [bytearray(100_000) for _ in range(10)]
del large
held = resident()
release_memory()
print(told, faults, held - resident())
"""


def run(**environment: str) -> tuple[bool, int, int]:
    """Whether glibc was told, page faults, and the MB that were handed back at last."""
    clean = {"PATH": "/usr/bin:/bin", "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    told, faults, released = done.stdout.split()
    return told == "True", int(faults), int(released)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's options")
def test_pages_are_not_cleared_again():
    told, faults, released = run(JAX_PLATFORMS="cpu")
    if not told:
        pytest.skip("no glibc")
    assert faults < 1000 and released > 200, "kept until it is released"
    told, faults, _ = run(JAX_PLATFORMS="cpu", MALLOC_TOP_PAD_="0")
    assert not told and faults > 50_000


def test_a_machine_with_an_accelerator_is_left_alone(monkeypatch):
    from mmjax import memory

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(memory, "_ACCELERATORS", ("/dev/nul*",))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("glibc was told"))
    assert not memory.keep_freed_memory()
