"""The one training loop: every stage of every recipe runs here.

A stage keeps everything in workdir/<name>: stage.json (config, table, hashes of the frozen parts),
freeze_table.txt, checkpoints/, metrics.jsonl, tensorboard/, panels/ and, once it is done, certificate.json.
The same call again resumes bit for bit from the newest checkpoint, or takes a finished stage's result.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.checkpoint import Checkpoints
from mmjax.config import ConfigError, to_dict
from mmjax.data.contracts import Batch
from mmjax.distributed.mesh import MeshConfig, batch_share, check_fits, make_mesh, put_batch
from mmjax.distributed.rules import shardings
from mmjax.nn.lora import merge_lora
from mmjax.paths import flatten, unflatten
from mmjax.train.flops import StepFlops, peak_flops, tokens_of
from mmjax.train.losses import next_token_loss
from mmjax.train.metrics import MetricsWriter, Progress
from mmjax.train.optimizer import make_optimizer, schedule
from mmjax.train.panels import PanelSample, draw_panel
from mmjax.train.stage import (
    StageConfig,
    adapt,
    certificate,
    fingerprint,
    freeze_rows,
    freeze_table,
    multipliers,
    split,
)
from mmjax.train.step import (
    Loss,
    TrainState,
    batch_shards,
    check_rows,
    init_state,
    make_train_step,
    state_shardings,
)

STOPPED = 77  # exit code of a run that saved and stopped because it was asked to
MOST_SKIPPED = 25  # non-finite steps in a row after which nothing good can follow
MAY_CHANGE = ("log_every", "checkpoint_every", "eval_every", "panel_every", "keep")

Evaluate = Callable[[int, Any], Mapping[str, float]]
Panel = Callable[[int, Any], Sequence[PanelSample]]


def run_stages(
    model: Any,
    params: Any,
    stages: Sequence[StageConfig],
    pipeline: Callable[[StageConfig], Any],
    workdir: str | os.PathLike,
    **options: Any,
) -> Any:
    """Runs stages one after the other, each on the params that the one before it left.

    Args:
        pipeline: stage -> its pipeline; not called for a stage that is finished already.
        **options: `mesh`, `evaluate`, `panel`, `stop`, `loss` of `train_stage`.

    Returns:
        The last stage's params.
    """
    names = [stage.name for stage in stages]
    if len(set(names)) != len(names):
        raise ConfigError(f"stages must have different names, got {', '.join(names)}")
    for stage in stages:
        source = None if finished(stage, workdir) else pipeline(stage)
        params = train_stage(model, params, stage, source, workdir, **options)
    return params


def finished(stage: StageConfig, workdir: str | os.PathLike) -> bool:
    """Whether the stage ran to its end in this workdir."""
    return (Path(workdir) / stage.name / "certificate.json").exists()


def train_stage(
    model: Any,
    params: Any,
    stage: StageConfig,
    pipeline: Any,
    workdir: str | os.PathLike,
    mesh: Mesh | None = None,
    evaluate: Evaluate | None = None,
    panel: Panel | None = None,
    stop: Callable[[], bool] | None = None,
    loss: Loss = next_token_loss,
) -> Any:
    """Trains one stage from its newest checkpoint, or from `params`, to its last step.

    Args:
        model: a MultimodalLM.
        params: its params, blocks stacked; they stay valid. Trained leaves of lower precision are trained in
            float32 and given back in their own dtype.
        stage: what to do; see `StageConfig`.
        pipeline: `.iterator(start_step)` gives host Batches from that step on; may be None if the stage is
            finished.
        workdir: the stage's folder is made in it.
        mesh: from `make_mesh`; None is the first device alone.
        evaluate: (step, params) -> numbers, logged under "eval/"; called every `eval_every` steps and at
            the last. The params are those that `model` takes (adapters merged) and must not be kept: the
            next step overwrites them.
        panel: (step, params) -> samples, drawn to panels/<step>.png.
        stop: asked after each step; True saves and leaves, as SIGTERM does.
        loss: see `mmjax.train.step`.

    Returns:
        The params after the last step, the stage's adapters merged.

    Raises:
        SystemExit: with code 77, after saving, when stopped before the end.
        ConfigError: the stage does not fit the params, the mesh, or what its folder holds already.
        RuntimeError: a frozen parameter changed.
        FloatingPointError: non-finite steps, if the stage does not skip them or they do not end.
    """
    folder, main = Path(workdir) / stage.name, jax.process_index() == 0
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    adapted, tree = adapt(model, params, stage)
    rows, table = freeze_rows(tree, stage), freeze_table(tree, stage)
    if main:
        print(table, flush=True)
    axes = flatten(adapted.param_axes())
    check_fits(flatten(adapted.param_shapes()), axes, mesh)
    places = shardings(axes, mesh)
    trainable, frozen = split(tree, stage)
    dtypes = {path: leaf.dtype for path, leaf in trainable.items()}
    trainable = {path: leaf.astype(np.float32) for path, leaf in trainable.items()}
    frozen = {path: jax.device_put(leaf, places[path]) for path, leaf in frozen.items()}
    before = fingerprint(frozen)

    def finish(trained: Mapping[str, jax.Array]) -> Any:
        out = unflatten({path: leaf.astype(dtypes[path]) for path, leaf in trained.items()}, frozen)
        if stage.lora is None:
            return out
        return {**out, "backbone": merge_lora(out["backbone"], stage.lora)}

    optimizer = make_optimizer(stage, multipliers(tree, stage), axes)
    layout = state_shardings(trainable, optimizer, places)
    with Checkpoints(folder / "checkpoints", keep=stage.keep) as checkpoints:
        latest = checkpoints.latest(allow_older=True, verify=True)
        _open(folder, stage, rows, before, table, latest, main)
        if latest is None:
            state = init_state(trainable, optimizer, layout)
        else:
            checkpoints.set_aside(after=latest)
            state = _restore(checkpoints, latest, trainable, optimizer, layout)
        del trainable, tree
        if latest != stage.steps:
            run = _Run(
                stage=stage,
                folder=folder,
                mesh=mesh,
                checkpoints=checkpoints,
                step=make_train_step(adapted, stage, optimizer, mesh, layout, loss),
                flops=StepFlops(adapted, dtypes),
                finish=finish,
                evaluate=evaluate,
                panel=panel,
            )
            state = run.run(state, frozen, pipeline, stop)
    after = fingerprint(frozen)
    proof = certificate(before, after)
    if main:
        print(
            f"stage {stage.name}: {stage.steps} steps done, {int(state.skipped)} skipped\n{proof}", flush=True
        )
        hashes = {group: {"before": before[group], "after": after[group]} for group in before}
        _write_json(folder / "certificate.json", {"frozen": hashes, "skipped": int(state.skipped)})
    return finish(state.trainable)


@dataclasses.dataclass
class _Run:
    """One go at a stage, from where its state stands to its end or to a stop."""

    stage: StageConfig
    folder: Path
    mesh: Mesh
    checkpoints: Checkpoints
    step: Any
    flops: StepFlops
    finish: Callable[[Any], Any]
    evaluate: Evaluate | None
    panel: Panel | None

    def run(
        self, state: TrainState, frozen: Any, pipeline: Any, stop: Callable[[], bool] | None
    ) -> TrainState:
        stage, first = self.stage, int(state.step)
        self.peak, origin = peak_flops(list(self.mesh.devices.flat))
        self.rate, self.bad = schedule(stage), 0
        self.main = jax.process_index() == 0
        self.writer = MetricsWriter(self.folder, first) if self.main else None
        self.progress = Progress(stage.name, stage.steps, first, terminal=None if self.main else False)
        where = "starts" if first == 0 else f"resumes at step {first}"
        peak = "MFU is not shown" if self.peak is None else f"peak for MFU {self.peak / 1e12:.3g} TFLOP/s"
        if self.main:
            self.progress.say(f"stage {stage.name} {where} on {self.mesh.size} device(s); {peak} ({origin})")
        self.counters = getattr(pipeline, "counters", None)
        batches = Prefetch(pipeline.iterator(first), self._place, limit=stage.steps - first)
        try:
            with _stop_asked(stop) as asked:
                return self._steps(state, frozen, batches, first, asked)
        finally:
            batches.close()
            self.progress.close()
            if self.writer is not None:
                self.writer.close()

    def _steps(
        self, state: TrainState, frozen: Any, batches: "Prefetch", first: int, asked: Any
    ) -> TrainState:
        last, previous = self.stage.steps, None
        self._restart_clock()
        for number in range(first + 1, last + 1):
            began = time.perf_counter()
            try:
                batch, tokens, flops = next(batches)
            except StopIteration:
                raise ValueError(
                    f"stage {self.stage.name!r}: the pipeline ended before step {number} of {last}"
                ) from None
            self.waited += time.perf_counter() - began
            compiled, began = self.step.compilations, time.perf_counter()
            state, metrics = self.step(state, frozen, batch)
            if self.step.compilations != compiled:
                self.outside += time.perf_counter() - began
            # Stay one step ahead of the device, no more: a stop or a bad loss is seen in time.
            self._watch(number - 1, previous)
            previous = metrics
            self.tokens, self.model_flops = self.tokens + tokens, self.model_flops + flops
            self.progress.update(number)
            if self._due(self.stage.log_every, number):
                self._log(number, state, metrics)
            if self.evaluate is not None and self._due(self.stage.eval_every, number):
                self._look(self._evaluated, number, state, metrics)
            if self.panel is not None and self._due(self.stage.panel_every, number):
                self._look(self._drawn, number, state, metrics)
            stopping = number < last and asked()
            every = self.stage.checkpoint_every
            if stopping or number == last or (every and number % every == 0):
                self._watch(number, metrics)
                previous = None
                self._save(number, state, wait=stopping or number == last)
            if stopping:
                self.progress.say(f"stage {self.stage.name}: asked to stop; saved step {number} of {last}")
                raise SystemExit(STOPPED)
        return state

    def _due(self, every: int, number: int) -> bool:
        return bool(every) and (number % every == 0 or number == self.stage.steps)

    def _place(self, batch: Batch) -> tuple[Batch, int, float]:
        """A host batch on the mesh, with its tokens and model FLOPs; runs in the prefetching thread."""
        shares = batch_share(self.mesh)[1] if jax.process_count() > 1 else 1
        if shares == 1:
            check_rows(batch, self.stage, batch_shards(self.mesh))
        tokens = sum(tokens_of(text) for text in batch.texts.values())
        return put_batch(batch, self.mesh), tokens * shares, self.flops.of(batch) * shares

    def _restart_clock(self) -> None:
        self.clock, self.waited, self.outside, self.tokens, self.model_flops = (
            time.perf_counter(),
            0.0,
            0.0,
            0,
            0.0,
        )

    def _watch(self, number: int, metrics: Mapping[str, jax.Array] | None) -> None:
        """Waits for a step and looks whether its loss and gradient were finite."""
        if metrics is None:
            return
        self.bad = 0 if float(metrics["finite"]) else self.bad + 1
        if self.bad and not self.stage.skip_nonfinite:
            values = ", ".join(f"{name} {float(metrics[name])}" for name in ("loss", "grad_norm"))
            raise FloatingPointError(
                f"stage {self.stage.name!r}, step {number}: {values}; "
                f"skip_nonfinite=True leaves such steps out"
            )
        if self.bad >= MOST_SKIPPED:
            raise FloatingPointError(
                f"stage {self.stage.name!r}: the {self.bad} steps up to {number} were not finite"
            )

    def _log(self, number: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        values.pop("finite")
        now = time.perf_counter()
        seconds = max(now - self.clock - self.outside, 1e-9)
        values |= {
            "lr": float(self.rate(number - 1)),
            "skipped": int(state.skipped),
            "tokens_per_s": self.tokens / seconds,
            "data_wait": min(self.waited / seconds, 1.0),
            "compilations": self.step.compilations,
        }
        if self.counters is not None:
            values["bad_records"] = self.counters.skipped
        if self.peak is not None:
            values["mfu"] = self.model_flops / seconds / self.peak
        self._restart_clock()
        if self.main:
            self.writer.write(number, values)
            self.progress.log(number, values)

    def _look(self, show: Callable[[int, Any], None], number: int, state: TrainState, metrics: Any) -> None:
        """Runs a caller's function on the current params; its time does not count as training."""
        jax.block_until_ready(metrics)
        began = time.perf_counter()
        with jax.set_mesh(self.mesh):
            show(number, self.finish(state.trainable))
        self.outside += time.perf_counter() - began

    def _evaluated(self, number: int, params: Any) -> None:
        values = {f"eval/{name}": value for name, value in self.evaluate(number, params).items()}
        if self.main:
            self.writer.write(number, values)
            shown = "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
            self.progress.say(f"{self.stage.name} {number}/{self.stage.steps}  {shown}")

    def _drawn(self, number: int, params: Any) -> None:
        samples = self.panel(number, params)
        if self.main and samples:
            image = draw_panel(samples, self.folder / "panels" / f"{number}.png")
            self.writer.image(number, "panel", image)

    def _save(self, number: int, state: TrainState, wait: bool) -> None:
        began = time.perf_counter()
        self.checkpoints.save(
            number, _named(state), {"stage": self.stage.name, "data_step": number}, wait=wait
        )
        self.outside += time.perf_counter() - began


class Prefetch:
    """Takes items from an iterator in a thread of its own, a few ahead of who asks, in order.

    Args:
        source: what is read; if it has `close`, that is called at the end.
        convert: applied to each item in that thread.
        limit: how many items are read at most; None reads to the end.
        depth: how many converted items wait at most.
    """

    def __init__(
        self, source: Iterator[Any], convert: Callable[[Any], Any], limit: int | None = None, depth: int = 2
    ):
        self._source, self._closed = source, threading.Event()
        self._items: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        items = itertools.islice(source, limit)
        self._thread = threading.Thread(
            target=self._fill, args=(items, convert), daemon=True, name="mmjax-prefetch"
        )
        self._thread.start()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Any:
        kind, item = self._items.get()
        if kind == "item":
            return item
        self._items.put((kind, item))
        raise StopIteration if kind == "end" else item

    def close(self) -> None:
        """Ends the thread; items that were not asked for are lost. One that hangs in the source is left behind."""
        self._closed.set()
        self._thread.join(timeout=10)
        if not self._thread.is_alive() and hasattr(self._source, "close"):
            self._source.close()

    def _fill(self, source: Iterator[Any], convert: Callable[[Any], Any]) -> None:
        try:
            for item in source:
                if not self._put("item", convert(item)):
                    return
            self._put("end", None)
        except BaseException as error:  # raised again where the item is asked for
            self._put("error", error)

    def _put(self, kind: str, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put((kind, item), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


@contextlib.contextmanager
def _stop_asked(stop: Callable[[], bool] | None) -> Iterator[Callable[[], bool]]:
    """A function that says whether to stop: SIGTERM came to any process, or `stop` says so."""
    signalled = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    old = signal.signal(signal.SIGTERM, lambda *_: signalled.set()) if in_main else None

    def asked() -> bool:
        mine = signalled.is_set() or (stop is not None and bool(stop()))
        if jax.process_count() == 1:
            return mine
        from jax.experimental import multihost_utils

        return bool(np.any(multihost_utils.process_allgather(np.int32(mine))))

    try:
        yield asked
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, old)


def _open(folder, stage, rows, frozen, table, latest, main) -> None:
    """Writes what the stage is into its folder; where a run goes on, checks that it is the same stage."""
    record = {"stage": to_dict(stage), "parts": rows, "frozen": frozen}
    record = json.loads(json.dumps(record, default=str))
    path = folder / "stage.json"
    if latest is not None and path.exists():
        old = json.loads(path.read_text())
        changed = [
            f"{key}: {old['stage'].get(key)!r} there, {value!r} here"
            for key, value in record["stage"].items()
            if key not in MAY_CHANGE and old["stage"].get(key) != value
        ]
        if changed:
            raise ConfigError(
                f"{folder} holds step {latest} of stage {stage.name!r} with another config; use another "
                f"workdir or go back to it:\n  " + "\n  ".join(changed)
            )
        other = [
            group
            for group in sorted({*old["frozen"], *frozen})
            if old["frozen"].get(group) != frozen.get(group)
        ]
        if other:
            raise ConfigError(
                f"{folder} holds step {latest} of stage {stage.name!r}, which began with other "
                f"frozen params: {', '.join(other)}"
            )
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "freeze_table.txt").write_text(table + "\n")
        _write_json(path, record)


def _write_json(path: Path, record: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, path)


def _named(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts, each leaf under its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return unflatten({jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves})


def _restore(checkpoints, step, trainable, optimizer, layout) -> TrainState:
    count = jax.ShapeDtypeStruct((), np.int32)
    shapes = TrainState(trainable, jax.eval_shape(optimizer.init, trainable), count, count)
    shapes = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, layout
    )
    restored = flatten(checkpoints.restore(step, _named(shapes), verify=False))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in _leaves(shapes)]
    return jax.tree_util.tree_unflatten(
        jax.tree_util.tree_structure(shapes), [restored[path] for path in paths]
    )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)
