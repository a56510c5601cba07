"""LLaMA-Adapter V2 against a slow implementation, at first the text model, and what it trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.adapter_prompts_v2 import AdapterPromptsV2Config
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.cache import unstack
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.moe import MixtureConfig
from mmjax.projectors.linear import LinearProjectorConfig

VIT = ViTConfig(
    image_size=6, patch_size=3, width=8, num_layers=1, num_heads=2, mlp_width=10, feature_strategy="patches"
)
PLAIN = DecoderConfig(31, 12, 4, 6, 2, 4, 20, max_positions=32)
BACKBONE = dataclasses.replace(PLAIN, fusion=AdapterPromptsV2Config(5, 2, 1))
CONFIG = MultimodalLMConfig(BACKBONE, {"image": VIT}, {"image": LinearProjectorConfig(8, 12)}, inside=("image",))
MODEL = MultimodalLM(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 7)).astype(np.int32)
PIXELS = np.random.default_rng(1).normal(size=(2, 1, 6, 6, 3)).astype(np.float32)
# Row 0 sees its image from its third token on, row 1 none.
SEEN = np.zeros((2, 7, 1), bool)
SEEN[0, 2:] = True


def batch(tokens=TOKENS, seen=SEEN):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    text = TextStream(tokens, positions, np.ones_like(tokens), media_attention=seen)
    return Batch({"text": text}, {"image": Media(PIXELS)})


logits = jax.jit(lambda params, batch: MODEL(params, batch).logits)


@pytest.fixture(scope="module")
def params(slow):
    return slow.drawn(MODEL)


def test_against_a_slow_implementation(params, slow):
    fusion = params["backbone"]["fusion"]
    memory = jax.jit(MODEL.encode_media)(params, {"image": Media(PIXELS)})["image"].values
    embeddings = MODEL.embed(params, batch().text)
    got = jax.jit(lambda params, batch: MODEL(params, batch).hidden)(params, batch())
    for row in range(2):
        decoder = slow.Decoder(PLAIN, params["backbone"])

        def linear(layer, name, y, decoder=decoder):
            own = decoder.at(fusion["blocks"], layer)["attn" if name in "qkvo" else "mlp"][name]
            return own["tuned_scale"] * (y + own["tuned_bias"])

        def more(layer, q, keys_of, decoder=decoder, row=row):
            if layer == 0:
                own, rows, seen = decoder.at(fusion["early"]["blocks"], 0), np.asarray(memory[row]), SEEN[row]
            elif layer >= 2:
                own = decoder.at(fusion["late"]["blocks"], layer - 2)
                rows, seen = own["prompts"], np.ones((7, 1), bool)
            else:
                return 0.0
            read = decoder.attend(q, *keys_of(rows), np.broadcast_to(seen, (7, len(rows))))
            return np.tanh(own["gate"])[:, None] * read

        decoder.linear, decoder.more = linear, more
        np.testing.assert_allclose(got[row], decoder(embeddings[row]), rtol=0, atol=5e-5)


def test_a_fresh_model_is_its_text_model_bit_for_bit(slow):
    params = slow.fresh(MODEL)
    backbone = {name: part for name, part in params["backbone"].items() if name != "fusion"}
    plain = MultimodalLM(MultimodalLMConfig(PLAIN))
    wanted = jax.jit(plain.__call__)({"backbone": backbone}, batch().replace(media={})).logits
    np.testing.assert_array_equal(logits(params, batch()), wanted)


@pytest.mark.slow
def test_unstacked_blocks_and_decoding(params):
    whole = logits(params, batch())
    np.testing.assert_allclose(logits(unstack(params), batch()), whole, atol=2e-5)
    out = generate(MODEL, params, batch(), GenerateOptions(max_new_tokens=3))
    tokens, seen = TOKENS, np.concatenate([SEEN, np.broadcast_to(SEEN[:, -1:], (2, 3, 1))], axis=1)
    for step in range(3):
        scores = logits(params, batch(np.pad(tokens, ((0, 0), (0, 3 - step))), seen))
        tokens = np.concatenate([tokens, scores[:, tokens.shape[1] - 1].argmax(axis=-1)[:, None]], axis=1)
        np.testing.assert_array_equal(out.tokens[:, step], tokens[:, -1])


@pytest.mark.slow
def test_every_leaf_gets_a_gradient(params):
    @jax.jit
    @jax.grad
    def gradient(fusion):
        tree = {**params, "backbone": {**params["backbone"], "fusion": fusion}}
        return jnp.mean(jnp.square(MultimodalLM(CONFIG, remat="full")(tree, batch()).logits))

    found = gradient(params["backbone"]["fusion"])
    assert all(np.abs(leaf).reshape(len(leaf), -1).max(axis=1).min() > 0 for leaf in jax.tree.leaves(found))


def test_what_cannot_be():
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="fusion.layers 3 and media_layers 2 are more than backbone.num_layers 4"):
        dataclasses.replace(BACKBONE, fusion=AdapterPromptsV2Config(5, 3, 2))
    with pytest.raises(ConfigError, match="experts have no biases and scales"):
        dataclasses.replace(BACKBONE, moe=MixtureConfig(4, 2, 8))
    with pytest.raises(ConfigError, match="fusion.media_layers must be at least 1"):
        AdapterPromptsV2Config(5, 1, 0)
    fusion = MODEL.param_shapes()["backbone"]["fusion"]
    assert fusion["blocks"]["attn"]["o"]["tuned_bias"].shape == (4, 12)
    assert fusion["blocks"]["attn"]["k"]["tuned_scale"].shape == (4, 2, 4)
