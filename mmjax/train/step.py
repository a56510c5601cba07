"""One optimiser step as one compiled, donated program: loss, gradient, accumulation, update, skip.

Only the trained leaves are differentiated; the frozen ones are an argument of their own, never donated. The
loss is a sum and a weight, both added up over the micro-batches before one is divided by the other, so
neither the number of micro-batches nor the mesh changes the result.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.data.contracts import Batch
from mmjax.distributed.rules import mesh_axes
from mmjax.paths import unflatten
from mmjax.train.losses import next_token_loss
from mmjax.train.stage import StageConfig

Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
# Of generators, see `mmjax.train.signal_loss`.
DRAWN = ("diffusion", "alignment", "regression", "retrieval", "decision")
# Of prompts, see `mmjax.train.prompt_loss`.
PROMPTED = ("contrast", "vocabulary", "align")
# Entries of a loss's aux that the step divides by the weight, and what they are called then.
_SAME = ("router_loss", "router_load", "bce", "dice", *DRAWN, *PROMPTED)
MEANS = {"correct": "accuracy", **{name: name for name in _SAME}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes and a checkpoint holds.

    Attributes:
        trainable: path -> trained leaf.
        opt_state: the optimiser's.
        step: int32 scalar, steps done (skipped ones included).
        skipped: int32 scalar, steps that were left out.
    """

    trainable: dict[str, jax.Array]
    opt_state: Any
    step: jax.Array
    skipped: jax.Array


def state_shardings(
    trainable: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    shardings: Mapping[str, NamedSharding],
) -> TrainState:
    """A TrainState of shardings: moments lie as their parameter does, counters on every device.

    Args:
        trainable: path -> array or shape.
        optimizer: the stage's.
        shardings: path -> sharding, of all trained paths.
    """
    shardings = {path: shardings[path] for path in trainable}
    everywhere = NamedSharding(next(iter(shardings.values())).mesh, PartitionSpec())
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, dict(trainable)),
        shardings,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(shardings, opt_state, everywhere, everywhere)


def init_state(
    trainable: Mapping[str, jax.Array], optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """Step 0: a copy of the trained leaves (the step donates its state) and a fresh optimiser state."""
    leaves = {
        path: jax.device_put(leaf, shardings.trainable[path], may_alias=False)
        for path, leaf in trainable.items()
    }
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(leaves)
    zero = functools.partial(jax.device_put, np.zeros((), np.int32))
    return TrainState(leaves, opt_state, zero(shardings.step), zero(shardings.skipped))


class TrainStep:
    """`step(state, frozen, batch) -> (state, metrics)`; `state` is donated: its buffers are gone afterwards.

    metrics are float32 scalars on the device: "loss" (sum / weight), "grad_norm" (before clipping), "finite"
    (0 where the step was left out), each entry of the loss's aux summed, those of MEANS divided by the weight.
    """

    def __init__(self, function: Callable, mesh: Mesh, shardings: TrainState):
        self._jitted = jax.jit(function, donate_argnums=0, out_shardings=(shardings, None))
        self._mesh = mesh

    def __call__(
        self, state: TrainState, frozen: dict[str, jax.Array], batch: Batch
    ) -> tuple[TrainState, dict]:
        with jax.set_mesh(self._mesh):
            return self._jitted(state, frozen, batch)

    def lower(self, state: Any, frozen: Any, batch: Any) -> Any:
        """The lowered program, for arrays or shapes."""
        with jax.set_mesh(self._mesh):
            return self._jitted.lower(state, frozen, batch)

    @property
    def compilations(self) -> int:
        """How many programs were compiled: one for each shape of batch that came."""
        return self._jitted._cache_size()


def make_train_step(
    model: Any,
    stage: StageConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    loss: Loss = next_token_loss,
) -> TrainStep:
    """Compiles nothing yet; the first call of each batch shape does.

    Args:
        model: a MultimodalLM.
        stage: seed, accumulation, what to do with non-finite steps.
        optimizer: from `make_optimizer`.
        mesh: from `make_mesh`; of one device for one device.
        shardings: from `state_shardings`.
        loss: (model, params, batch, rng) -> (sum, aux of sums with "weight"); with a keyword `router_weight` where
            the stage has one.
    """
    shards = batch_shards(mesh)
    if stage.router_weight is not None:
        loss = functools.partial(loss, router_weight=stage.router_weight)

    def objective(trainable, frozen, batch, rng):
        return loss(model, unflatten(trainable, frozen), batch, rng)

    def sums(trainable, frozen, batch, rng):
        (total, aux), grads = jax.value_and_grad(objective, has_aux=True)(trainable, frozen, batch, rng)
        return total, aux, jax.tree.map(lambda grad: grad.astype(jnp.float32), grads)

    def accumulated(trainable, frozen, batch, rng):
        if stage.accumulate == 1:
            return sums(trainable, frozen, batch, rng)
        micro = micro_batches(batch, stage.accumulate, shards)
        keys = jax.random.split(rng, stage.accumulate)
        shapes = jax.eval_shape(sums, trainable, frozen, jax.tree.map(lambda leaf: leaf[0], micro), keys[0])
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

        def body(carry, item):
            return jax.tree.map(jnp.add, carry, sums(trainable, frozen, *item)), None

        return jax.lax.scan(body, zeros, (micro, keys))[0]

    def step(state: TrainState, frozen: dict[str, jax.Array], batch: Batch):
        rng = jax.random.fold_in(jax.random.key(stage.seed), state.step)
        total, aux, grads = accumulated(state.trainable, frozen, batch, rng)
        weight = aux["weight"]
        scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
        value, grads = total * scale, jax.tree.map(lambda grad: grad * scale, grads)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        # A batch without a single target has no gradient to follow, but momentum and decay would still move.
        keep = (finite | (not stage.skip_nonfinite)) & (weight > 0)
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old),
            (trainable, opt_state),
            (state.trainable, state.opt_state),
        )
        skipped = state.skipped + jnp.where(keep, 0, 1).astype(jnp.int32)
        metrics = {"loss": value, "grad_norm": norm, "finite": finite, **aux}
        for name in MEANS.keys() & aux.keys():
            metrics[MEANS[name]] = metrics.pop(name) * scale
        metrics = {name: jnp.asarray(item, jnp.float32) for name, item in metrics.items()}
        return TrainState(trainable, opt_state, state.step + 1, skipped), metrics

    return TrainStep(step, mesh, shardings)


def batch_shards(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return math.prod(mesh.shape[name] for name in mesh_axes("batch"))


def micro_batches(batch: Batch, accumulate: int, shards: int) -> Batch:
    """A batch with a new first axis: `accumulate` micro-batches, taken within each shard, so no row moves.

    Rows of text and rows of media are cut alike: with `media_owner`, the rows of one shard's micro-batch must
    be owned by the media rows of the same one, which `check_rows` verifies on the host.
    """

    def cut(leaf):
        parts = leaf.reshape(shards, accumulate, leaf.shape[0] // (shards * accumulate), *leaf.shape[1:])
        return parts.swapaxes(0, 1).reshape(accumulate, leaf.shape[0] // accumulate, *leaf.shape[1:])

    out = jax.tree.map(cut, batch)
    if batch.media_owner is None or not batch.media:
        return out
    size = _media_rows(batch) // (shards * accumulate)
    shard = out.media_owner // (size * accumulate)
    return out.replace(media_owner=shard * size + out.media_owner % size)


def check_rows(batch: Batch, stage: StageConfig, shards: int) -> None:
    """Checks a whole batch on the host before it goes to the devices.

    Raises:
        ValueError: the rows are not `stage.batch_size`, are not divided by shards and micro-batches, or a row
            is owned by media of another micro-batch; the message has both counts.
    """
    rows, parts = next(iter(batch.texts.values())).tokens.shape[0], shards * stage.accumulate
    if rows != stage.batch_size:
        raise ValueError(
            f"stage {stage.name!r}: a batch has {rows} rows of text, batch_size is {stage.batch_size}"
        )
    counts = {"rows of text": rows}
    if batch.media:
        counts["rows of media"] = _media_rows(batch)
    for name, count in counts.items():
        if count % parts:
            raise ValueError(
                f"stage {stage.name!r}: {count} {name} are not divided by {shards} batch shards x "
                f"accumulate {stage.accumulate}; make it {-(-count // parts) * parts}"
            )
    if batch.media_owner is None or not batch.media or parts == 1:
        return
    owner = np.asarray(batch.media_owner)
    mine = np.arange(rows) // (rows // parts)
    theirs = owner // (counts["rows of media"] // parts)
    if (mine != theirs).any():
        row = int(np.argmax(mine != theirs))
        raise ValueError(
            f"stage {stage.name!r}: row {row} is in part {mine[row]} of {parts} (shards x micro-batches) but "
            f"its media row {owner[row]} in part {theirs[row]}; order rows by owner, equally many for each"
        )


def _media_rows(batch: Batch) -> int:
    return next(iter(batch.media.values())).values.shape[0]
