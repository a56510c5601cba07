"""Freed memory of the host, kept for the next step.

On a CPU every run of a compiled program asks for its temporaries anew. glibc takes large ones from the kernel and
hands them back, which clears each page again at its first touch: up to a quarter of a training step's time. On a
machine with an accelerator, temporaries lie there, and what a checkpoint took of the host is better given back.
"""

import ctypes
import glob
import os
import sys

# Of glibc's malloc.h: one arena for all threads, nothing from mmap, nothing handed back, growth by 256 MiB.
_OPTIONS = ((-8, 1), (-4, 0), (-1, -1), (-2, 256 << 20))
# Files of GPUs (NVIDIA, AMD) and TPUs.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, before threads are started; whether it was told.

    Nothing is changed where there is no glibc, where the machine has an accelerator that jax may use, or where the
    environment sets glibc's own MALLOC_ variables.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    only_cpu = os.environ.get("JAX_PLATFORMS", "").lower() == "cpu"
    if not only_cpu and any(glob.glob(pattern) for pattern in _ACCELERATORS):
        return False
    library = _glibc()
    return library is not None and all([library.mallopt(*option) == 1 for option in _OPTIONS])


def release_memory() -> None:
    """Hands back what is kept: between two stages, whose temporaries differ in size. Without glibc it does nothing."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "gnu_get_libc_version") else None
