"""Media written as embeddings: the loss beside its closed form in torch, with gradients, and what it must not reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.generators.next_embedding import NextEmbeddingConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.output_projectors import MLPOutputConfig
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.train.signal_loss import SignalLoss

TOWER = ViTConfig(16, 8, 12, 1, 2, 16, feature_strategy="patches")
CONFIG = MultimodalLMConfig(
    DecoderConfig(40, 16, 1, 2, 2, 8, 24),
    {"other": TOWER, "image": TOWER},
    {"other": LinearProjectorConfig(12, 16), "image": LinearProjectorConfig(12, 16)},
    {"other": 30, "image": 31},
    generators={"image_out": NextEmbeddingConfig("image", 16)},
    output_projectors={"image_out": MLPOutputConfig(16, 20, 16, "gelu")},
    signal_tokens={"image_out": (32,)},
)
MODEL = MultimodalLM(CONFIG)


def example():
    """Row 0: an item of each port. Row 1: one that stands first in its text, behind another, and padding."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, 30, (2, 14)).astype(np.int32)
    index = np.full_like(tokens, -1)
    index[0, 1:5], index[0, 7:11] = np.arange(4), 4 + np.arange(4)
    index[1, 6:10] = 4 + np.arange(4)
    segments = np.ones_like(tokens)
    segments[1, 6:11], segments[1, 11:] = 2, 0
    positions = np.broadcast_to(np.arange(14, dtype=np.int32), tokens.shape).copy()
    text = TextStream(tokens, positions, segments, media_index=index)
    pixels = random.normal(size=(2, 2, 1, 16, 16, 3)).astype(np.float32)
    return Batch({"text": text}, {"other": Media(pixels[0]), "image": Media(pixels[1])})


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), MODEL.param_shapes())


def test_loss_is_its_closed_form_with_gradients(params):
    batch = example()
    assert "generators" not in params

    @jax.jit
    def run(params, text_weight):
        total, aux = SignalLoss(text=text_weight, regression=2.0)(MODEL, params, batch)
        return total / aux["weight"], aux["regression"] / aux["weight"]

    (whole, mean), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params, 0.0)
    np.testing.assert_allclose(whole, 2 * mean, rtol=1e-5)

    @jax.jit
    def parts(params):
        media = MODEL.encode_media(params, batch.media)
        return MODEL.forward(params, batch.texts, media), MODEL.embed(params, batch.text, media)

    hidden, embedded = (torch.tensor(np.array(part)) for part in parts(params))
    own = params["output_projectors"]["image_out"]
    leaves = {name: torch.tensor(np.array(own[name]["kernel"]), requires_grad=True) for name in ("fc1", "fc2")}
    said = torch.nn.functional.gelu(hidden @ leaves["fc1"] + torch.tensor(np.array(own["fc1"]["bias"])))
    said = said @ leaves["fc2"] + torch.tensor(np.array(own["fc2"]["bias"]))
    # The first of row 1 follows another text: nothing says it.
    places = [(0, at) for at in range(7, 11)] + [(1, at) for at in range(7, 10)]
    wanted = torch.stack([(said[row, at - 1] - embedded[row, at]).square().mean() for row, at in places]).mean()
    np.testing.assert_allclose(mean, wanted.item(), rtol=1e-5)
    (2 * wanted).backward()
    for name, leaf in leaves.items():
        found = grads["output_projectors"]["image_out"][name]["kernel"]
        np.testing.assert_allclose(found, leaf.grad.numpy(), atol=1e-4)
    assert np.abs(grads["backbone"]["blocks"]["attn"]["q"]["kernel"]).max() > 1e-6


def test_what_is_to_be_said_is_not_moved(params):
    batch = example()
    index = np.array(batch.text.media_index)
    index[0] = -1  # the last item of row 1 alone: nothing behind it reads it
    index[1, 6:9] = -1
    batch = batch.replace(texts={"text": batch.text.replace(media_index=index)})

    def loss(params):
        total, aux = SignalLoss(text=0.0)(MODEL, params, batch)
        return total / aux["weight"]

    grads = jax.jit(jax.grad(loss))(params)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["projectors"]["image"]))
    assert np.asarray(grads["output_projectors"]["image_out"]["fc2"]["kernel"]).any()


def test_bad_options(params):
    with pytest.raises(ConfigError, match="no encoder of its own"):
        dataclasses.replace(CONFIG, generator_encoders={"image_out": TOWER})
    with pytest.raises(ConfigError, match="next_embedding.of"):
        dataclasses.replace(CONFIG, generators={"image_out": NextEmbeddingConfig("picture", 16)})
