"""The branch of high resolution against a slow implementation, without large images, and in decoding."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.high_resolution import HighResolutionConfig
from mmjax.backbones.fusion.visual_expert import VisualExpertConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.cache import unstack
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

LOW = ViTConfig(
    image_size=6, patch_size=3, width=8, num_layers=1, num_heads=2, mlp_width=10, feature_strategy="patches"
)
HIGH = dataclasses.replace(LOW, image_size=9, width=10, num_heads=2)
PLAIN = DecoderConfig(31, 12, 2, 6, 2, 4, 20, max_positions=32)
BACKBONE = dataclasses.replace(PLAIN, fusion=HighResolutionConfig(10, num_heads=3, head_dim=2))
# The large image is read as its tower gives it, without a projector.
CONFIG = MultimodalLMConfig(
    BACKBONE,
    {"image": LOW, "detail": HIGH},
    {"image": LinearProjectorConfig(8, 12)},
    {"image": 30},
    inside=("detail",),
)
MODEL = MultimodalLM(CONFIG)
# Row 0 has an image, row 1 none.
INDEX = np.full((2, 8), -1, np.int32)
INDEX[0, 1:5] = range(4)
SEEN = np.zeros((2, 8, 1), bool)
SEEN[0] = True
TOKENS = np.random.default_rng(0).integers(0, 29, INDEX.shape).astype(np.int32)
PIXELS = {
    port: np.random.default_rng(side).normal(size=(2, 1, side, side, 3)).astype(np.float32)
    for port, side in (("image", 6), ("detail", 9))
}


def batch(tokens=TOKENS, index=INDEX, seen=SEEN, ports=("image", "detail")):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    text = TextStream(tokens, positions, np.ones_like(tokens), media_index=index, media_attention=seen)
    return Batch({"text": text}, {port: Media(PIXELS[port]) for port in ports})


forward = jax.jit(lambda params, batch: MODEL(params, batch))


@pytest.fixture(scope="module")
def params(slow):
    return slow.drawn(MODEL)


def test_against_a_slow_implementation(params, slow):
    fusion = params["backbone"]["fusion"]["blocks"]
    media = jax.jit(MODEL.encode_media)(params, batch().media)
    embeddings = MODEL.embed(params, batch().text, media)
    got = forward(params, batch()).hidden
    for row in range(2):
        decoder = slow.Decoder(PLAIN, params["backbone"])
        features = np.asarray(media["detail"].values[row], np.float64)
        assert features.shape == (9, 10)

        def maps(layer, at, decoder=decoder, row=row):
            return decoder.at(fusion if INDEX[row, at] >= 0 else params["backbone"]["blocks"], layer)

        def between(layer, x, decoder=decoder, row=row, features=features):
            if not SEEN[row].any():
                return x
            own = decoder.at(fusion, layer)["cross"]
            q = np.tensordot(decoder.norm(x, own["norm"]["scale"]), own["attn"]["q"]["kernel"], 1)
            k, v = (np.tensordot(features, own["attn"][name]["kernel"], 1) for name in "kv")
            heads = decoder.attend(q, k, v, np.ones((len(x), len(features)), bool))
            return x + np.tensordot(heads, own["attn"]["o"]["kernel"], 2)

        decoder.maps, decoder.between = maps, between
        np.testing.assert_allclose(got[row], decoder(embeddings[row]), rtol=0, atol=5e-5)


def test_without_large_images_it_is_the_visual_expert(params):
    blocks = {name: params["backbone"]["fusion"]["blocks"][name] for name in ("attn", "mlp")}
    config = dataclasses.replace(
        CONFIG,
        backbone=dataclasses.replace(PLAIN, fusion=VisualExpertConfig()),
        encoders={"image": LOW},
        inside=(),
    )
    plain = {**params, "backbone": {**params["backbone"], "fusion": {"blocks": blocks}}}
    alone = batch(seen=None, ports=("image",))
    wanted = jax.jit(MultimodalLM(config).__call__)(plain, alone).logits
    np.testing.assert_allclose(forward(params, alone).logits, wanted, rtol=0, atol=1e-5)
    assert np.abs(forward(params, batch()).logits[0] - wanted[0]).max() > 1e-2


@pytest.mark.slow
def test_unstacked_blocks_and_decoding(params):
    whole = forward(params, batch()).logits
    np.testing.assert_allclose(forward(unstack(params), batch()).logits, whole, rtol=0, atol=5e-5)
    out = generate(MODEL, params, batch(), GenerateOptions(max_new_tokens=3))
    tokens, index = (np.pad(a, ((0, 0), (0, 3)), constant_values=-1) for a in (TOKENS, INDEX))
    seen = np.concatenate([SEEN, np.broadcast_to(SEEN[:, -1:], (2, 3, 1))], axis=1)
    for step in range(3):
        scores = forward(params, batch(np.maximum(tokens, 0), index, seen)).logits
        tokens[:, 8 + step] = scores[:, 7 + step].argmax(axis=-1)
        np.testing.assert_array_equal(out.tokens[:, step], tokens[:, 8 + step])


def test_what_cannot_be():
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="backbone.parallel"):
        dataclasses.replace(BACKBONE, parallel=True)
    with pytest.raises(ConfigError, match="fusion.head_dim must be at least 1"):
        HighResolutionConfig(10, head_dim=0)
    with pytest.raises(ConfigError, match="encoders.detail gives 8 channels without a projector; .* is 10"):
        dataclasses.replace(CONFIG, encoders={"image": LOW, "detail": LOW})
    assert dataclasses.replace(CONFIG, views={"detail": "image"}).processor_options["views"] == {"detail": "image"}
    with pytest.raises(ConfigError, match=r"views: 'detail' cannot see the items of 'sound'; .* are \['image'\]"):
        dataclasses.replace(CONFIG, views={"detail": "sound"})
