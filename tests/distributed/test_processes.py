import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from mmjax.distributed import processes
from mmjax.distributed.processes import PreemptionFlag, StepWatchdog

ROOT = pathlib.Path(__file__).parents[2]

# Each process: 2 devices, its own rows, a mean over all rows, a save that fails on one, a SIGTERM to one.
TWO_PROCESSES = """
import os, signal, sys, time
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mmjax.checkpoint import CheckpointError, Checkpoints
from mmjax.distributed import processes
from mmjax.distributed.mesh import MeshConfig, batch_share, make_mesh, put_batch

coordinator, index, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
processes.initialize(coordinator, 2, index, heartbeat_timeout=10)
with processes.fail_fast():
    assert (processes.process_count(), processes.process_index()) == (2, index)
    assert processes.is_main() == (index == 0)
    rows = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)

    def mean(mesh):
        share, shares = batch_share(mesh)
        batch = put_batch({"rows": np.split(rows, shares)[share], "scale": np.float32(3)}, mesh)
        assert batch["rows"].shape == (8, 6)
        w = jax.make_array_from_callback(
            weights.shape, NamedSharding(mesh, P(None, "tensor")), lambda part: weights[part]
        )
        f = jax.jit(lambda b, w: (b["scale"] * b["rows"] @ w).mean(), out_shardings=NamedSharding(mesh, P()))
        return (share, shares, float(f(batch, w))), w

    across, _ = mean(make_mesh(MeshConfig(data=2, fsdp=2)))
    assert across[:2] == (index, 2), across
    grid = np.array(jax.devices()).reshape(2, 2).T.ravel()  # tensor spans the processes: both load all rows
    replicas, w = mean(make_mesh(MeshConfig(data=2, tensor=2), list(grid)))
    assert replicas[:2] == (0, 1), replicas
    print("MEANS", across[2], replicas[2], flush=True)

    try:
        with processes.agreed():
            if index == 1:
                raise OSError("disk full")
    except (OSError, RuntimeError) as error:
        print("AGREED", type(error).__name__, error, flush=True)

    checkpoints = Checkpoints(directory)
    assert checkpoints.latest() is None
    checkpoints.save(4, {"w": w}, {"rows_seen": 32}, wait=True)
    assert checkpoints.latest(verify=True) == 4
    mesh = make_mesh(MeshConfig(fsdp=4))
    like = {"w": jax.ShapeDtypeStruct((6, 4), np.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))}
    restored = checkpoints.restore(4, like)["w"]
    for shard in restored.addressable_shards:
        np.testing.assert_array_equal(shard.data, weights[shard.index])
    try:
        checkpoints.save(6, {"w": w * np.nan}, {})
    except CheckpointError as error:
        print("REFUSED", error, flush=True)

    with processes.PreemptionFlag() as preemption:
        for step in range(400):
            if index == 1 and step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            if preemption.reached(step):
                break
            processes.sync(f"step {step}")
            time.sleep(0.02)
    print("STOPPED", step, preemption.requested, flush=True)
    checkpoints.close()
    jax.distributed.shutdown()
    sys.exit(processes.EXIT_PREEMPTED)
"""


def environment(devices):
    """The environment of a subprocess that imports mmjax with this many simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    coordinator = f"127.0.0.1:{free_port()}"
    command = [sys.executable, str(script), coordinator]
    running = [
        subprocess.Popen(
            [*command, str(index), str(tmp_path / "run")],
            env=environment(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (out, err) in zip(running, outputs, strict=True):
        assert process.returncode == processes.EXIT_PREEMPTED, out + err

    rows = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    want = float((3.0 * rows.astype(np.float64) @ weights).mean())
    for out, _ in outputs:
        means = [float(number) for number in re.search("MEANS (.*)", out)[1].split()]
        np.testing.assert_allclose(means, [want, want], atol=1e-5)
        assert "REFUSED NaN or infinite, so not saved: w" in out
    assert "AGREED RuntimeError failed on process 1" in outputs[0][0]
    assert "AGREED OSError disk full" in outputs[1][0]
    stops = {re.search("STOPPED (.*)", out)[1] for out, _ in outputs}
    assert len(stops) == 1 and stops.pop().endswith("True"), [out for out, _ in outputs]


def test_one_process_needs_nothing():
    processes.initialize(num_processes=1)
    assert not jax.distributed.is_initialized()
    assert processes.is_main() and processes.process_count() == 1 and processes.process_index() == 0
    processes.sync("start")
    assert processes.from_main(None) is None and processes.from_main(7) == 7
    with pytest.raises(KeyError), processes.agreed():
        raise KeyError("passes through")
    with pytest.raises(KeyError), processes.fail_fast():
        raise KeyError("passes through")


def test_fail_fast_ends_a_process_that_others_would_wait_for(monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_exit", codes.append)
    with processes.fail_fast():
        raise OSError("lost the disk")
    assert codes == [processes.EXIT_FAILED]
    assert "OSError: lost the disk" in capsys.readouterr().err
    with pytest.raises(SystemExit), processes.fail_fast():
        sys.exit(processes.EXIT_PREEMPTED)


def test_initialize_names_what_is_missing():
    with pytest.raises(ValueError, match="num_processes.*process_id"):
        processes.initialize("127.0.0.1:1234")


def test_preemption_flag_is_set_by_sigterm_and_puts_the_handler_back():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionFlag() as flag:
        assert not flag.requested and not flag.reached(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.reached(1) and flag.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_watchdog_ends_a_stuck_run_and_says_where():
    script = """
        import time
        from mmjax.distributed.processes import StepWatchdog

        def stuck_in_a_collective():
            time.sleep(60)

        with StepWatchdog(20) as watchdog:
            for step in range(4):
                time.sleep(0.01)
                watchdog.beat(f"step {step}")
            watchdog.beat("evaluation", timeout=0.4)
            stuck_in_a_collective()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == processes.EXIT_STALLED, done.stderr
    assert "process 0 of 1: no progress" in done.stderr and "'evaluation' (limit 0.4 s)" in done.stderr
    assert "in stuck_in_a_collective" in done.stderr


def test_watchdog_lets_a_finished_run_go():
    with pytest.raises(ValueError, match="more than 0"):
        StepWatchdog(0)
    with StepWatchdog(30) as watchdog:
        watchdog.beat("step 0")
    assert not watchdog._thread.is_alive()
