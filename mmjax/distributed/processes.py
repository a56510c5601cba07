"""Starting a run of several processes, meeting between them, and ending when one stops, hangs or is told to.

Heartbeats see a process that died; they do not see one that lives and is stuck, for which there is
`StepWatchdog`. Nothing here is needed in a run of one process, and everything works in one.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np

EXIT_FAILED = 1
EXIT_STALLED = 75
EXIT_PREEMPTED = 77


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 30,
) -> None:
    """Joins this process to a run of several; must come before anything asks jax for its devices.

    Without arguments the cluster is detected (TPU pod, SLURM, MPI, Kubernetes). A run of one process
    (`num_processes=1`) and a second call do nothing. Preemption is announced to all processes
    (`PreemptionFlag`).

    Args:
        coordinator: "host:port" of process 0, the same on every process.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        heartbeat_timeout: seconds until a process that died ends the others.

    Raises:
        ValueError: some but not all of the three are given, or no cluster is detected.
        RuntimeError: the others did not come, or jax had already started its devices.
    """
    if jax.distributed.is_initialized() or num_processes == 1:
        return
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(f"give coordinator, num_processes and process_id, or none; missing: {missing}")
    # Must be set before the coordination service starts: it makes a SIGTERM to one process known to all.
    jax.config.update("jax_enable_preemption_service", True)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=60,
        )
    except ValueError as error:
        if not missing:
            raise
        raise ValueError(
            f"no cluster was detected ({error}); give coordinator, num_processes and process_id"
        ) from error


def process_index() -> int:
    """Which process this is, from 0."""
    return jax.process_index()


def process_count() -> int:
    """How many processes the run has."""
    return jax.process_count()


def is_main() -> bool:
    """True on the one process that prints and writes what is written once."""
    return jax.process_index() == 0


def sync(name: str) -> None:
    """Waits until every process has come to the point `name`; nothing in a run of one process.

    Raises:
        AssertionError: another process is at a point with another name.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Every process runs the block; if it raises on one, it raises on all, and nobody waits for the others.

    Raises:
        RuntimeError: on the processes where the block itself did not raise; names those where it did.
    """
    if jax.process_count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(failure is not None)))
    if failure is not None:
        raise failure
    if failed.size:
        raise RuntimeError(f"failed on process {', '.join(map(str, failed))}; its own message says why")


def from_main(value: int | None) -> int | None:
    """The main process's number (0 or more) or None, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    number = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if value is None else value)))
    return None if number < 0 else number


@contextlib.contextmanager
def fail_fast() -> Iterator[None]:
    """Ends this process at once, with its traceback, when the block raises in a run of several processes.

    A process that leaves by an exception would wait for the others at shutdown while they wait for it in a
    collective. In a run of one process exceptions pass through. `SystemExit` always does.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        _exit(EXIT_FAILED)


class StepWatchdog:
    """Ends the process when the run makes no progress: prints the stack of every thread, exits with 75.

    Use as a context manager around the loop and call `beat` after each step, once its result is known on the
    host (dispatch alone is no progress). Compilation counts as a step: give the first beat a longer timeout.

    Args:
        timeout: seconds without a beat until the process is ended.

    Raises:
        ValueError: a timeout that is not more than 0.
    """

    def __init__(self, timeout: float):
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {timeout}")
        self.timeout = timeout
        # Asked now: while the run hangs, jax itself may not answer.
        self._who = f"process {jax.process_index()} of {jax.process_count()}"
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.beat("start")

    def beat(self, where: str, timeout: float | None = None) -> None:
        """Tells that the run has come to `where` ("step 12", "evaluation").

        Args:
            where: what is printed if nothing follows.
            timeout: seconds until the next beat must come; the watchdog's own if None.
        """
        with self._lock:
            self._where = where
            self._since = time.monotonic()
            self._limit = self.timeout if timeout is None else timeout

    def __enter__(self) -> "StepWatchdog":
        self._stopped.clear()
        self.beat("start", self._limit)
        self._thread = threading.Thread(target=self._watch, name="mmjax-step-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            with self._lock:
                waited, where, limit = time.monotonic() - self._since, self._where, self._limit
            if waited >= limit:
                break
            if self._stopped.wait(min(limit - waited, 1.0)):
                return
        print(
            f"{self._who}: no progress for {waited:.1f} s after {where!r} (limit {limit:g} s). "
            "Stacks of all threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        _exit(EXIT_STALLED)


class PreemptionFlag:
    """Turns SIGTERM, the notice that this machine is about to be taken, into a flag that the loop reads.

    Create it in the main thread after `initialize`. In a run of one process it installs a handler. With
    several the coordination service already handles the signal: a SIGTERM to any process makes
    `reached(step)` true on all of them at the same step, so that all can save together and exit with
    `EXIT_PREEMPTED`.

    Use as a context manager, or call `close`, to put the previous handler back.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)):
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}
        if jax.process_count() == 1:
            for number in signals:
                self._previous[number] = signal.signal(number, self._handle)

    def reached(self, step: int) -> bool:
        """True when the run should save and stop; the same answer on every process for the same step.

        Every process must call it with the same increasing steps, also while it warms up or evaluates.
        """
        if jax.process_count() > 1 and not self.requested:
            from jax.experimental import multihost_utils

            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def close(self) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __enter__(self) -> "PreemptionFlag":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
