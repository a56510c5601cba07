"""MultimodalLM as a whole: forms of params agree, media land where the index says, meshes do not change numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh, put_batch
from mmjax.distributed.rules import shardings
from mmjax.encoders.vit import ViTConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjectorConfig

CONFIG = MultimodalLMConfig(
    backbone=DecoderConfig(64, 32, 2, 4, 2, 8, 48),
    encoders={
        "near": ViTConfig(16, 8, 16, 2, 2, 24, feature_layers=(-2,), feature_strategy="patches"),
        "far": ViTConfig(
            24, 8, 12, 1, 2, 16, class_token=False, pre_norm=False, patch_bias=True, pool="none"
        ),
    },
    projectors={"near": MLPProjectorConfig(16, 20, 32), "far": LinearProjectorConfig(12, 32)},
    media_tokens={"near": 62, "far": 63},
)


def example(batch=8, length=24):
    rng = np.random.default_rng(0)
    index = np.full((batch, length), -1, np.int32)
    index[:, 2:10] = np.arange(8)  # two near images of 4 tokens
    index[:, 12:21] = 8 + np.arange(9)  # one far image of 9
    text = TextStream(
        tokens=rng.integers(0, 60, (batch, length)).astype(np.int32),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length)).copy(),
        segment_ids=np.ones((batch, length), np.int32),
        media_index=index,
    )
    media = {
        "near": Media(
            rng.normal(size=(batch, 2, 16, 16, 3)).astype(np.float32), np.ones((batch, 2), np.int32)
        ),
        "far": Media(
            rng.normal(size=(batch, 1, 24, 24, 3)).astype(np.float32), np.ones((batch, 1), np.int32)
        ),
    }
    return Batch({"text": text}, media)


@pytest.fixture(scope="module")
def model():
    return MultimodalLM(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    """At random by numpy, of about the size that `init` gives: compiling that takes longer than all the tests here."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + 0.1 * rng.normal(size=shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, model.param_shapes())


@pytest.fixture(scope="module")
def logits(model):
    """Of a batch, compiled as a whole: one operation after the other takes longer to compile."""
    return jax.jit(lambda params, batch: model(params, batch).logits)


def test_axes_and_shapes_describe_every_leaf(model):
    axes, made = model.param_axes(), jax.eval_shape(model.init, jax.random.key(1))
    is_axes = lambda leaf: isinstance(leaf, tuple)
    jax.tree.map(
        lambda names, leaf: len(names) == leaf.ndim or pytest.fail(names), axes, made, is_leaf=is_axes
    )
    shapes = model.param_shapes()
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), made
    )


def test_media_rows_stand_where_the_index_says(model, params):
    batch = example(batch=2)
    media = jax.jit(model.encode_media)(params, batch.media)
    embed = jax.jit(model.embed)
    embedded = np.asarray(embed(params, batch.text, media))
    table = np.asarray(params["backbone"]["embed"]["embedding"])
    rows = np.concatenate([media["near"].values, media["far"].values], axis=1)
    for b in range(2):
        for t in range(24):
            index = batch.text.media_index[b, t]
            expected = table[batch.text.tokens[b, t]] if index < 0 else rows[b, index]
            np.testing.assert_array_equal(embedded[b, t], expected)
    swapped = embed(params, batch.text, media, jnp.array([1, 0]))
    np.testing.assert_array_equal(swapped[0, 3], rows[1, 1])


def test_encoded_and_projected_media_go_on_from_where_they_are(model, params, logits):
    batch = example(batch=2)
    whole = logits(params, batch)
    encode = lambda params, items: {port: model.encode(params, port, media) for port, media in items.items()}
    encoded = jax.jit(encode)(params, batch.media)
    assert {media.stage for media in encoded.values()} == {"encoded"}
    np.testing.assert_allclose(logits(params, batch.replace(media=encoded)), whole, atol=1e-5)
    projected = jax.jit(model.encode_media)(params, encoded)
    np.testing.assert_allclose(logits(params, batch.replace(media=projected)), whole, atol=1e-5)
    with pytest.raises(ConfigError, match="'nearby' is not one of"):
        model.encode_media(params, {"nearby": batch.media["near"]})


def test_padding_and_other_groups_change_nothing(params, logits):
    batch = example(batch=1)
    text = batch.text
    whole = logits(params, batch)
    pad = lambda leaf, value: np.concatenate(
        [np.full((1, 3), value, leaf.dtype), leaf, np.full((1, 2), value, leaf.dtype)], 1
    )
    padded = TextStream(
        pad(text.tokens, 5),
        pad(text.positions, 0),
        pad(text.segment_ids, 0),
        media_index=pad(text.media_index, -1),
    )
    np.testing.assert_allclose(
        logits(params, batch.replace(texts={"text": padded}))[:, 3:-2], whole, atol=2e-5
    )


def test_questions_behind_one_image_equal_questions_alone(params, logits):
    batch = example(batch=1)
    rng = np.random.default_rng(1)
    questions = rng.integers(0, 60, (2, 5)).astype(np.int32)
    prefix = {
        name: getattr(batch.text, name) for name in ("tokens", "positions", "segment_ids", "media_index")
    }

    def joined(parts):
        more = np.concatenate(parts)[None]
        tail = np.tile(np.arange(24, 29, dtype=np.int32), len(parts))[None]
        groups = np.concatenate(
            [np.zeros(24, np.int32)] + [np.full(5, i + 1, np.int32) for i in range(len(parts))]
        )
        return TextStream(
            tokens=np.concatenate([prefix["tokens"], more], 1),
            positions=np.concatenate([prefix["positions"], tail], 1),
            segment_ids=np.ones((1, 24 + more.shape[1]), np.int32),
            media_index=np.concatenate([prefix["media_index"], np.full_like(more, -1)], 1),
            attend_group=groups[None],
        )

    together = logits(params, batch.replace(texts={"text": joined(list(questions))}))
    for number, question in enumerate(questions):
        alone = logits(params, batch.replace(texts={"text": joined([question])}))
        at = 24 + 5 * number
        np.testing.assert_allclose(together[:, at : at + 5], alone[:, 24:], atol=2e-5)


def test_bfloat16_is_close_to_float32(model, params, logits):
    batch = example(batch=2)
    half = dataclasses.replace(model, dtype="bfloat16")
    full, low = logits(params, batch), jax.jit(lambda params, batch: half(params, batch).logits)(params, batch)
    assert low.dtype == jnp.float32
    assert np.abs(full - low).max() < 0.05 * max(1.0, float(np.abs(full).max()))


def test_num_tokens_is_known_before_any_array():
    assert CONFIG.num_tokens("near") == 4 and CONFIG.num_tokens("far") == 9
    with pytest.raises(ConfigError, match="port"):
        CONFIG.num_tokens("middle")


MESHES = [{"data": 8}, {"fsdp": 4}, {"tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.quick("dataxfsdpxtensor")
@pytest.mark.parametrize("axes", MESHES, ids=lambda axes: "x".join(axes))
def test_a_mesh_changes_no_number_and_no_gradient(model, params, axes):
    batch = example()

    def loss(params, batch):
        logits = model(params, batch).logits
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0])

    value, gradient = jax.jit(jax.value_and_grad(loss))(params, batch)
    count = int(np.prod(list(axes.values())))
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[:count])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(model.param_axes(), mesh))
        value_there, gradient_there = jax.jit(jax.value_and_grad(loss))(placed, put_batch(batch, mesh))
    np.testing.assert_allclose(value_there, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient_there, gradient
    )
