"""Mixture-of-modality adapters against a slow implementation, at first the text model, and what routes them."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.modality_adapters import ModalityAdaptersConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

VIT = ViTConfig(
    image_size=6, patch_size=3, width=8, num_layers=1, num_heads=2, mlp_width=10, feature_strategy="patches"
)
PLAIN = DecoderConfig(31, 12, 2, 6, 2, 4, 20, max_positions=32)
BACKBONE = dataclasses.replace(PLAIN, fusion=ModalityAdaptersConfig(hidden=3, temperature=0.7, scale=0.5))
CONFIG = MultimodalLMConfig(BACKBONE, {"image": VIT}, {"image": LinearProjectorConfig(8, 12)}, {"image": 30})
MODEL = MultimodalLM(CONFIG)
# Row 0 has an image, row 1 is text alone.
INDEX = np.full((2, 8), -1, np.int32)
INDEX[0, 2:6] = range(4)
TOKENS = np.random.default_rng(0).integers(0, 29, INDEX.shape).astype(np.int32)
PIXELS = np.random.default_rng(1).normal(size=(2, 1, 6, 6, 3)).astype(np.float32)


def batch(tokens=TOKENS, index=INDEX):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    text = TextStream(tokens, positions, np.ones_like(tokens), media_index=index)
    return Batch({"text": text}, {"image": Media(PIXELS)})


forward = jax.jit(lambda params, batch: MODEL(params, batch))


@pytest.fixture(scope="module")
def params(slow):
    return slow.drawn(MODEL)


def test_against_a_slow_implementation(params, slow):
    fusion = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["backbone"]["fusion"])
    embed = jax.jit(lambda params, batch: MODEL.embed(params, batch.text, MODEL.encode_media(params, batch.media)))
    embeddings = embed(params, batch())
    got = forward(params, batch()).hidden
    for row, token in enumerate((fusion["tokens"][1], fusion["tokens"][0])):
        decoder = slow.Decoder(PLAIN, params["backbone"])

        def adapted(layer, h, decoder=decoder, token=token):
            own = decoder.at(fusion["blocks"], layer)
            weights = decoder.softmax((token @ own["router"]["kernel"] + own["router"]["bias"]) / 0.7)
            low = h @ own["down"]["kernel"] + own["down"]["bias"]
            paths = [low @ own["up"]["kernel"][path] + own["up"]["bias"][path] for path in range(2)]
            return h + 0.5 * (weights[0] * paths[0] + weights[1] * paths[1])

        decoder.before = adapted
        np.testing.assert_allclose(got[row], decoder(embeddings[row]), rtol=0, atol=5e-5)


def test_a_fresh_model_is_its_text_model_bit_for_bit(slow):
    params = slow.fresh(MODEL)
    backbone = {name: part for name, part in params["backbone"].items() if name != "fusion"}
    plain = MultimodalLM(dataclasses.replace(CONFIG, backbone=PLAIN))
    wanted = jax.jit(plain.__call__)({**params, "backbone": backbone}, batch()).logits
    np.testing.assert_array_equal(forward(params, batch()).logits, wanted)


@pytest.mark.slow
def test_what_a_row_is_holds_while_it_is_decoded(params):
    out = generate(MODEL, params, batch(), GenerateOptions(max_new_tokens=3))
    tokens, index = (np.pad(a, ((0, 0), (0, 3)), constant_values=-1) for a in (TOKENS, INDEX))
    for step in range(3):
        scores = forward(params, batch(np.maximum(tokens, 0), index)).logits
        tokens[:, 8 + step] = scores[:, 7 + step].argmax(axis=-1)
        np.testing.assert_array_equal(out.tokens[:, step], tokens[:, 8 + step])


def test_what_cannot_be():
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="fusion.temperature must be positive, got 0"):
        ModalityAdaptersConfig(temperature=0)
    with pytest.raises(ConfigError, match="needs a backbone whose fusion reads media"):
        dataclasses.replace(CONFIG, inside=("image",), media_tokens={})
