"""Models with ports of regions: the composed path against its parts called by hand, and what regions owe to a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.convnext import ConvNeXtConfig
from mmjax.encoders.region_items import RegionItemsConfig
from mmjax.encoders.vit import ViT, ViTConfig
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.projectors.regions import REGIONS
from mmjax.projectors.regions.mask_tokens import MaskTokensConfig
from mmjax.projectors.regions.region_tokens import RegionTokensConfig
from mmjax.projectors.regions.roi_token import RoITokenConfig
from mmjax.projectors.regions.sampled_token import SampledTokenConfig
from mmjax.train.losses import next_token_loss

LLM = DecoderConfig(64, 32, 2, 4, 2, 8, 48)
VIT = ViTConfig(
    24, 8, 16, 3, 2, 24, feature_layers=(-2,), feature_strategy="patches", extra_layers=(0, 1), pool="none"
)
CONVNEXT = ConvNeXtConfig(32, 4, (4, 8, 12), (1, 1, 1), feature_stages=(0, 2, 1))
MASK = (12, 10)


def config_of(encoder, reader, levels):
    size = None if reader.takes == "boxes" else MASK
    return MultimodalLMConfig(
        LLM,
        {"image": encoder, "region": RegionItemsConfig(reader.takes, size)},
        {"image": LinearProjectorConfig(encoder.feature_width, 32), "region": RegionTokensConfig(reader, levels, size)},
        {"image": 62, "region": 63},
        regions={"region": "image"},
    )


CONFIGS = {
    "boxes of layers": config_of(
        VIT,
        RoITokenConfig((16, 16, 16), 32, hidden=8, fusions=1, groups=2, out_size=3, place_hidden=6, token_width=10),
        ("layer_0", "layer_1", "features"),
    ),
    "masks of stages": config_of(
        CONVNEXT, MaskTokensConfig((4, 8, 12), 32, hidden=8, mask_size=5), ("stage_0", "features", "stage_2")
    ),
    "points of one map": config_of(
        VIT, SampledTokenConfig((16,), 32, num_points=12, kept=(6, 3), neighbours=(4, 3)), ("features",)
    ),
}
# In `make test` the one with most layers; the others have other readers but no other path through the model.
KINDS = [name if "layers" in name else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
# The image of each region of each row; 0 is padding.
PARENT = np.array([[2, 1, 2], [1, 0, 0], [0, 0, 0]], np.int32)


def example(config, images=2):
    random = np.random.default_rng(0)
    batch, regions = PARENT.shape
    count, each = config.num_tokens("image"), config.projectors["region"].reader.tokens
    index = np.full((batch, images * count + regions * each + 8), -1, np.int32)
    index[:, 1 : 1 + images * count] = np.arange(images * count)
    for row, parents in enumerate(PARENT):
        for number in np.flatnonzero(parents):
            start = images * count + number * each
            at = 3 + start
            index[row, at : at + each] = np.arange(start, start + each)
    tokens = random.integers(0, 60, index.shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(index.shape[1], dtype=np.int32), index.shape).copy()
    text = TextStream(tokens, positions, np.ones_like(index), media_index=index)
    if config.projectors["region"].mask_size is None:
        low = random.uniform(0.05, 0.4, (batch, regions, 2))
        values = np.concatenate([low, low + random.uniform(0.1, 0.5, low.shape)], axis=-1)
    else:
        values = random.uniform(size=(batch, regions, *MASK)) > 0.6
    real = PARENT > 0
    values = np.where(real.reshape(*real.shape, *(1,) * (values.ndim - 2)), values, 0).astype(np.float32)
    pixels = random.normal(size=(batch, images, *config.encoders["image"].item_shape)).astype(np.float32)
    media = {
        "image": Media(pixels, np.ones((batch, images), np.int32)),
        "region": Media(values, np.cumsum(real, axis=1).astype(np.int32) * real, parent=PARENT),
    }
    return Batch({"text": text}, media)


def params_of(model):
    random = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(random.normal(0.1, 0.3, leaf.shape), jnp.float32)
    return jax.tree.map(draw, model.param_shapes())


@pytest.mark.parametrize("name", KINDS)
def test_regions_are_read_from_the_maps_of_their_own_image(name):
    config = CONFIGS[name]
    model, batch = MultimodalLM(config), example(config)
    params, projector = params_of(model), config.projectors["region"]
    found = jax.jit(model.encode_media)(params, batch.media)["region"]
    assert found.extra_features is None and found.stage == "projected"
    pixels, regions = batch.media["image"].values, batch.media["region"].values
    reader = REGIONS[type(projector.reader)](projector.reader)
    each = projector.reader.tokens

    @jax.jit
    def alone(image, region):
        """One image and one region of it, by the parts."""
        encoded = model.encode(params, "image", Media(image[None, None]))
        maps = {"features": encoded.values, **(encoded.extra_features or {})}
        levels = []
        for level in projector.levels:
            side = round(maps[level].shape[1] ** 0.5)
            levels.append(maps[level].reshape(1, side, side, -1))
        variables = {"params": params["projectors"]["region"]["reader"]}
        return reader.apply(variables, levels, region[None, None])[0, 0]

    for row, number in np.argwhere(PARENT):
        tokens = alone(pixels[row, PARENT[row, number] - 1], regions[row, number])
        mine = found.values[row, number * each : (number + 1) * each]
        scale = max(1.0, float(jnp.sqrt(jnp.mean(tokens**2))))
        np.testing.assert_allclose(mine, tokens, atol=1e-5 * scale)
    np.testing.assert_array_equal(np.asarray(found.segment_ids)[:, ::each] > 0, PARENT > 0)


@pytest.mark.parametrize("name", KINDS)
def test_a_step_moves_the_projector_and_padding_does_no_harm(name):
    config = CONFIGS[name]
    model, batch = MultimodalLM(config), example(config)
    params = params_of(model)
    batch = batch.replace(texts={"text": batch.text.replace(loss_weights=np.ones(batch.text.tokens.shape, np.float32))})

    def loss(projectors):
        return next_token_loss(model, {**params, "projectors": projectors}, batch, jax.random.key(0))[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params["projectors"])
    assert np.isfinite(value)
    for path, grad in flatten(grads).items():
        assert np.isfinite(grad).all(), path
        if path.endswith("kernel"):
            assert np.abs(grad).max() > 0, path


def test_a_batch_without_regions_is_that_of_the_plain_model():
    config = CONFIGS["points of one map"]
    whole, batch = MultimodalLM(config), example(config)
    plain = MultimodalLM(
        dataclasses.replace(
            config,
            encoders={"image": dataclasses.replace(VIT, extra_layers=())},
            projectors={"image": config.projectors["image"]},
            media_tokens={"image": 62},
            regions={},
        )
    )
    params = params_of(whole)
    fewer = {**params, "projectors": {"image": params["projectors"]["image"]}}
    index = np.where(batch.text.media_index < 2 * config.num_tokens("image"), batch.text.media_index, -1)
    media = {"image": batch.media["image"]}
    batch = Batch({"text": batch.text.replace(media_index=index)}, media)
    ours, theirs = jax.jit(whole.__call__)(params, batch), jax.jit(plain.__call__)(fewer, batch)
    np.testing.assert_array_equal(ours.logits, theirs.logits)


@pytest.mark.slow
def test_generation_reads_regions():
    config = CONFIGS["boxes of layers"]
    model, batch = MultimodalLM(config), example(config)
    params = params_of(model)
    out = generate(model, params, batch, GenerateOptions(max_new_tokens=2))
    logits = jax.jit(model.__call__)(params, batch).logits
    np.testing.assert_array_equal(out.tokens[:, 0], jnp.argmax(logits[:, -1], axis=-1))
    moved = batch.replace(media={**batch.media, "region": batch.media["region"].replace(parent=3 - PARENT)})
    other = jax.jit(model.__call__)(params, moved).logits
    assert np.abs(other[0] - logits[0]).max() > 1e-3
    # Where there are no regions, nothing moves.
    np.testing.assert_array_equal(other[2], logits[2])


def test_extra_layers_are_hidden_states():
    encoder = ViT(dataclasses.replace(VIT, extra_layers=(0, -1), feature_layers=(-2, 1)))
    images = np.random.default_rng(0).normal(size=(2, 2, 24, 24, 3)).astype(np.float32)

    @jax.jit
    def run(images):
        variables = encoder.init(jax.random.key(0), images[:, 0], method="create")
        layers = encoder.apply(variables, images.reshape(4, 24, 24, 3), (0, 1, 2, 3), method="hidden_states")
        return encoder.apply(variables, Media(images)), [x[:, 1:].reshape(2, 18, 16) for x in layers]

    found, layers = run(images)
    assert found.values.shape == (2, 18, 32) == (2, 2 * 9, encoder.config.feature_width)
    np.testing.assert_allclose(found.values, jnp.concatenate([layers[2], layers[1]], axis=-1), atol=1e-6)
    np.testing.assert_allclose(found.extra_features["layer_0"], layers[0], atol=1e-6)
    np.testing.assert_allclose(found.extra_features["layer_3"], layers[3], atol=1e-6)


def test_the_image_is_encoded_once(monkeypatch):
    config, asked = CONFIGS["points of one map"], []
    model, batch = MultimodalLM(config), example(config)
    encode = MultimodalLM.encode
    monkeypatch.setattr(MultimodalLM, "encode", lambda self, *args: asked.append(args[1]) or encode(self, *args))
    jax.eval_shape(model.encode_media, model.param_shapes(), batch.media)
    assert asked == ["image", "region"]


def test_bad_regions_are_named():
    config = CONFIGS["points of one map"]
    model, batch = MultimodalLM(config), example(config)
    params = model.param_shapes()

    def encode(media, model=model):
        return jax.eval_shape(model.encode_media, params, media)

    with pytest.raises(ValueError, match="'image', which is missing"):
        encode({"region": batch.media["region"]})
    ready = encode({"image": batch.media["image"]})
    with pytest.raises(ValueError, match="which is projected"):
        encode({**batch.media, **ready})
    with pytest.raises(ValueError, match="regions are"):
        encode({**batch.media, "region": Media(np.zeros((3, 2, 4), np.float32))})
    with pytest.raises(ConfigError, match="regions has ports"):
        dataclasses.replace(config, regions={})
    with pytest.raises(ConfigError, match="regions.region"):
        dataclasses.replace(config, regions={"region": "region"})
    with pytest.raises(ConfigError, match="mask_size"):
        RegionTokensConfig(MaskTokensConfig((4,), 32), ("features",))
    with pytest.raises(ConfigError, match="levels"):
        dataclasses.replace(config.projectors["region"], levels=("features", "layer_0"))
    with pytest.raises(ConfigError, match="takes"):
        RegionItemsConfig("boxes", (3, 3))
    missing = dataclasses.replace(config.projectors["region"], levels=("layer_7",))
    other = MultimodalLM(dataclasses.replace(config, projectors={**config.projectors, "region": missing}))
    with pytest.raises(ValueError, match="'layer_7' of their image, whose encoder gives"):
        encode(batch.media, other)


def test_configs_survive_their_file():
    for config in CONFIGS.values():
        assert from_dict(MultimodalLMConfig, to_dict(config)) == config
