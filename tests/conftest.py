"""Settings that must stand before jax is loaded: CPU, 8 simulated devices, quick compilation, a cache on disk."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import sys

import pytest

from mmjax.memory import keep_freed_memory

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs cost far more to optimise than to run; without LLVM's optimiser the numbers are the same.
WANTED = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
}
# The emitters of fused kernels take half of all the tests' time to compile them, the older ones a tenth of that. jaxlib
# 0.11 has no choice any more, and ends the process at a flag that it does not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    WANTED["--xla_cpu_use_fusion_emitters"] = "false"
flags = os.environ.get("XLA_FLAGS", "")
missing = " ".join(f"{name}={value}" for name, value in WANTED.items() if name not in flags)
os.environ["XLA_FLAGS"] = f"{flags} {missing}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Two test processes share two cores; torch's own threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
keep_freed_memory()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a grid with the mark `quick`, what the mark does not name is slow."""
    for item in items:
        mark = item.get_closest_marker("quick")
        if mark is not None and item.callspec.id not in mark.args:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A file stays in one process: what its tests share is made once, and not by each process again."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_finish() -> None:
    """What is loaded by now (torch, transformers, every test) stays: the collector need not walk through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def exact() -> dict[str, bool]:
    """Options of `jax.jit` where two programs must agree bit for bit, which the older emitters do not always give."""
    return {"xla_cpu_use_fusion_emitters": True} if "--xla_cpu_use_fusion_emitters" in WANTED else {}


@pytest.fixture(scope="session")
def tpu_environment() -> dict[str, str]:
    """Variables for a subprocess that compiles for TPUs that are not here; skips where there is no libtpu.

    `make test` puts libtpu into .venv/tpu-compiler, out of the way of everything else.
    """
    library = pathlib.Path(sys.prefix) / "tpu-compiler" / "libtpu" / "libtpu.so"
    found = {"TPU_LIBRARY_PATH": str(library)} if library.exists() else {}
    if not found and "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the TPU compiler, is not installed")
    return os.environ | found | {
        "JAX_PLATFORMS": "cpu",
        # libtpu ends the process at a flag that only the CPU's compiler knows.
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
