"""The train step: meshes, micro-batches, frozen leaves, non-finite steps, media shared by rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh, put_batch
from mmjax.distributed.rules import shardings
from mmjax.encoders.vit import ViTConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten, unflatten
from mmjax.projectors.mlp import MLPProjectorConfig
from mmjax.train.losses import next_token_loss
from mmjax.train.optimizer import make_optimizer
from mmjax.train.stage import StageConfig, multipliers, split
from mmjax.train.step import (
    batch_shards,
    check_rows,
    init_state,
    make_train_step,
    micro_batches,
    state_shardings,
)

# Everything that a mesh splits is a multiple of 8.
DECODER = DecoderConfig(
    vocab_size=48, width=16, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=2, mlp_width=24, qkv_bias=True
)
VIT = ViTConfig(
    image_size=6, patch_size=3, width=16, num_layers=1, num_heads=8, mlp_width=24, feature_strategy="patches"
)
MODEL = MultimodalLM(
    MultimodalLMConfig(DECODER, {"image": VIT}, {"image": MLPProjectorConfig(16, 32, 16)}, {"image": 47})
)
MESHES = [{"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]


def make_batch(rows=16, media_rows=16, length=9, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 47, (rows, length)).astype(np.int32)
    index = np.full((rows, length), -1, np.int32)
    index[:, 1:5] = np.arange(4)
    weights = (rng.random((rows, length)) < 0.4).astype(np.float32)
    weights[:, :5] = 0
    weights[0, 7] = 1
    segments = np.ones((rows, length), np.int32)
    segments[rows // 2 :, -2:] = 0
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy()
    places = np.tile(np.arange(5, length, dtype=np.int32), (rows, 1))
    text = TextStream(tokens, positions, segments, weights, media_index=index, loss_positions=places)
    values = rng.normal(size=(media_rows, 1, 6, 6, 3)).astype(np.float32)
    owner = None if rows == media_rows else (np.arange(rows) * media_rows // rows).astype(np.int32)
    return Batch({"text": text}, {"image": Media(values, np.ones((media_rows, 1), np.int32))}, owner)


def make_stage(**options):
    rules = ("encoders/.*", "freeze"), ("backbone/.*", "train", 0.5), ("projectors/.*", "train")
    options = {"trainable": rules, "batch_size": 16, "learning_rate": 1e-2, "weight_decay": 0.1, **options}
    return StageConfig(name="s", steps=10, schedule="constant", **options)


def make_params(seed=0):
    """Params of the size that `init` gives, drawn by numpy: compiling the initialiser takes longer than a test."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + 0.2 * rng.normal(size=shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, MODEL.param_shapes())


def run_step(stage, batch, mesh_axes=None, params=None, steps=1, optimizer=None, loss=next_token_loss):
    """(params after `steps` steps, metrics of the last, state), on a mesh of 8 devices or on one."""
    devices = jax.devices()[: 8 if mesh_axes else 1]
    mesh = make_mesh(MeshConfig(**(mesh_axes or {})), devices)
    axes = flatten(MODEL.param_axes())
    places = shardings(axes, mesh)
    params = make_params() if params is None else params
    trainable, frozen = split(params, stage)
    optimizer = optimizer or make_optimizer(stage, multipliers(params, stage), axes)
    layout = state_shardings(trainable, optimizer, places)
    state = init_state(trainable, optimizer, layout)
    frozen = {path: jax.device_put(leaf, places[path]) for path, leaf in frozen.items()}
    step = make_train_step(MODEL, stage, optimizer, mesh, layout, loss)
    check_rows(batch, stage, batch_shards(mesh))
    for _ in range(steps):
        state, metrics = step(state, frozen, put_batch(batch, mesh))
    assert step.compilations == 1
    return jax.device_get(unflatten(state.trainable, frozen)), jax.device_get(metrics), state


def assert_same(ours, theirs, rtol=2e-4, atol=2e-6):
    for path, leaf in flatten(theirs).items():
        np.testing.assert_allclose(flatten(ours)[path], leaf, rtol=rtol, atol=atol, err_msg=path)


@pytest.fixture(scope="module")
def before():
    return make_params()


@pytest.fixture(scope="module")
def one_device(before):
    # Plain gradient descent with rate 1 moves each parameter by its gradient: updates compare gradients.
    return run_step(make_stage(), make_batch(), params=before, optimizer=optax.sgd(1.0))


@pytest.mark.quick("data-fsdp-tensor")
@pytest.mark.parametrize("axes", MESHES, ids=lambda axes: "-".join(axes))
def test_a_mesh_gives_the_loss_and_every_gradient_of_one_device(axes, one_device):
    params, metrics, state = run_step(make_stage(), make_batch(), axes, optimizer=optax.sgd(1.0))
    assert metrics["loss"] == pytest.approx(one_device[1]["loss"], rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(one_device[1]["grad_norm"], rel=1e-4)
    assert_same(params, one_device[0])
    kernel = state.trainable["backbone/blocks/mlp/up/kernel"]
    split_over = axes.get("fsdp", 1) * axes.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size * split_over == kernel.size


@pytest.mark.slow
def test_adamw_on_a_mesh_with_micro_batches_equals_one_device_without():
    stage = make_stage(accumulate=2)
    batch = make_batch(rows=16, media_rows=16)
    whole = run_step(make_stage(), batch, steps=3)
    parts = run_step(stage, batch, {"data": 2, "tensor": 4}, steps=3)
    assert parts[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-4)
    # Where a gradient is nearly zero Adam's first steps have the size of the rate whatever its sign.
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (parts[0], whole[0])), strict=True)]
    assert max(moved) < 2e-3 and np.mean(moved) < 2e-4


@pytest.mark.quick("None")
@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 4}])
def test_micro_batches_of_unequal_weight_equal_the_whole(mesh):
    batch = make_batch(rows=32, media_rows=16)
    weights = batch.text.loss_weights.copy()
    weights[:20] = 0
    weights[5, 6] = 3.5
    batch = batch.replace(texts={"text": batch.text.replace(loss_weights=weights)})
    whole = run_step(make_stage(batch_size=32), batch, optimizer=optax.sgd(1.0))
    stage = make_stage(batch_size=32, accumulate=2)
    parts = run_step(stage, batch, mesh, optimizer=optax.sgd(1.0))
    assert parts[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-5)
    assert parts[1]["weight"] == whole[1]["weight"]
    assert_same(parts[0], whole[0])


def test_frozen_leaves_have_no_state_and_stay():
    before = make_params()
    after, _, state = run_step(make_stage(), make_batch(), params=before, steps=2)
    assert not any("encoders" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    for path, leaf in flatten(before).items():
        same = np.array_equal(leaf, flatten(after)[path])
        assert same == path.startswith("encoders/"), path


def test_donation_leaves_the_callers_params_alone(before, one_device):
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert_same(before, make_params(), rtol=0, atol=0)


def test_a_non_finite_step_changes_nothing_but_the_count():
    batch = make_batch()
    bad = batch.media["image"].values.copy()
    bad[3, 0, 0, 0, 0] = np.inf
    broken = batch.replace(media={"image": batch.media["image"].replace(values=bad)})
    before = make_params()
    after, metrics, state = run_step(make_stage(), broken, params=before, steps=2)
    assert (int(state.step), int(state.skipped), float(metrics["finite"])) == (2, 2, 0.0)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    assert int(state.opt_state[1].count) == 0
    _, _, state = run_step(make_stage(skip_nonfinite=False), broken, params=before)
    assert int(state.skipped) == 0
    assert not np.isfinite(state.trainable["backbone/lm_head/kernel"]).all()


def test_a_batch_without_targets_is_left_out():
    batch = make_batch()
    text = batch.text.replace(loss_weights=np.zeros_like(batch.text.loss_weights))
    before = make_params()
    after, metrics, state = run_step(make_stage(), batch.replace(texts={"text": text}), params=before)
    assert (float(metrics["loss"]), int(state.skipped)) == (0.0, 1)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))


def test_the_key_follows_from_seed_and_step():
    def loss(model, params, batch, rng):
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
        return total, {"weight": jnp.float32(1), "drawn": jax.random.uniform(rng)}

    def draw(seed, steps):
        stage = make_stage(seed=seed)
        return float(run_step(stage, make_batch(), steps=steps, loss=loss, optimizer=optax.sgd(1.0))[1]["drawn"])

    drawn = [draw(0, 1), draw(0, 1), draw(0, 2), draw(1, 1)]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3
    assert drawn[2] == float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), 1)))


def test_micro_batches_keep_rows_with_their_media():
    batch = make_batch(rows=24, media_rows=12)
    micro = micro_batches(jax.tree.map(jnp.asarray, batch), accumulate=3, shards=2)
    seen = []
    for part in range(3):
        one = jax.tree.map(lambda leaf, part=part: np.asarray(leaf)[part], micro)
        for row in range(8):
            tokens, image = one.text.tokens[row], one.media["image"].values[one.media_owner[row]]
            (old,) = np.flatnonzero((batch.text.tokens == tokens).all(axis=1))
            np.testing.assert_array_equal(image, batch.media["image"].values[batch.media_owner[old]])
            seen.append(int(old))
    assert sorted(seen) == list(range(24))
    assert seen[:8] == [0, 1, 2, 3, 12, 13, 14, 15]


@pytest.mark.parametrize(
    "rows, media_rows, owner, shards, message",
    [
        (12, 12, None, 1, "12 rows of text, batch_size is 16"),
        (16, 16, None, 3, "16 rows of text are not divided by 3 batch shards x accumulate 2; make it 18"),
        (16, 6, None, 2, "6 rows of media are not divided by 2 batch shards x accumulate 2; make it 8"),
        (16, 8, np.arange(16) % 8, 1, "row 4 is in part 0 of 2 .* media row 4 in part 1"),
    ],
)
def test_rows_that_do_not_fit_are_named(rows, media_rows, owner, shards, message):
    batch = make_batch(rows, media_rows)
    batch = batch if owner is None else batch.replace(media_owner=owner)
    with pytest.raises(ValueError, match=message):
        check_rows(batch, make_stage(accumulate=2), shards)
