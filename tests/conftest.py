"""Settings that must stand before jax is loaded: CPU, 8 simulated devices, quick compilation, a cache on disk."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs cost far more to optimise than to run; without LLVM's optimiser the numbers are the same.
WANTED = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
}
flags = os.environ.get("XLA_FLAGS", "")
missing = " ".join(f"{name}={value}" for name, value in WANTED.items() if name not in flags)
os.environ["XLA_FLAGS"] = f"{flags} {missing}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Two test processes share two cores; torch's own threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
