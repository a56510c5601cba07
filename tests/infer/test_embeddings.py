"""Embeddings written one behind the other, beside the whole text read anew for each of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.generators.next_embedding import NextEmbeddingConfig
from mmjax.infer.cache import unstack
from mmjax.infer.embeddings import EmbeddingPrograms
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.output_projectors import MLPOutputConfig
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.signals import condition

CONFIG = MultimodalLMConfig(
    DecoderConfig(40, 16, 2, 2, 1, 8, 24, max_positions=24),
    {"image": ViTConfig(16, 8, 12, 1, 2, 16, feature_strategy="patches")},
    {"image": LinearProjectorConfig(12, 16)},
    {"image": 31},
    generators={"image_out": NextEmbeddingConfig("image", 16)},
    output_projectors={"image_out": MLPOutputConfig(16, 20, 16, "gelu")},
    signal_tokens={"image_out": (32,)},
)
MODEL, COUNT = MultimodalLM(CONFIG), 4


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), MODEL.param_shapes())


def prompts():
    """One padded on the left, one on the right, one with an image before."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, 30, (3, 9)).astype(np.int32)
    segments, index = np.ones_like(tokens), np.full_like(tokens, -1)
    segments[0, :3] = segments[1, 7:] = 0
    index[2, 1:5] = np.arange(4)
    tokens[0, 8] = tokens[1, 6] = tokens[2, 8] = 32
    positions = (np.cumsum(segments, axis=1) - 1).clip(0).astype(np.int32)
    pixels = random.normal(size=(3, 1, 16, 16, 3)).astype(np.float32)
    return Batch({"text": TextStream(tokens, positions, segments, media_index=index)}, {"image": Media(pixels)})


def slowly(params, batch, row):
    """One row alone, without padding, read from the beginning for every embedding."""
    text = batch.text
    kept = np.flatnonzero(text.segment_ids[row])
    media = jax.jit(MODEL.encode_media)(params, batch.media)["image"].values[row]
    length = len(kept) + COUNT
    index = np.concatenate([text.media_index[row, kept], 4 + np.arange(COUNT)])[None].astype(np.int32)
    tokens = np.pad(text.tokens[row, kept], (0, COUNT))[None]
    whole = TextStream(tokens, np.arange(length, dtype=np.int32)[None], np.ones_like(tokens), media_index=index)

    @jax.jit
    def run(params, rows, place):
        hidden = MODEL.forward(params, {"text": whole}, {"image": Media(rows, stage="projected")})
        return condition(MODEL, params, "image_out", hidden[:, place][:, None, None]).sequence[0, 0]

    written = np.zeros((COUNT, 16), np.float32)
    for number in range(COUNT):
        rows = np.concatenate([media, written])[None]
        written[number] = run(params, rows, len(kept) - 1 + number)
    return written


def test_every_embedding_reads_those_before_it(params):
    programs, batch = EmbeddingPrograms(MODEL), prompts()
    found = programs(params, batch)
    assert found.shape == (3, COUNT, 16) and programs.count == COUNT
    for row in range(3):
        np.testing.assert_allclose(found[row], slowly(params, batch, row), atol=1e-4)
    np.testing.assert_allclose(programs(unstack(params), batch), found, atol=1e-4)


def test_what_cannot_be_is_said(params):
    with pytest.raises(ConfigError, match="port"):
        EmbeddingPrograms(MODEL, "image")
    text = prompts().text
    far = text.replace(positions=np.asarray(text.positions) + 14)
    with pytest.raises(ValueError, match="24 positions"):
        EmbeddingPrograms(MODEL)(params, prompts().replace(texts={"text": far}))
    with pytest.raises(ConfigError, match="next_embedding.of"):
        dataclasses.replace(CONFIG, generators={"image_out": NextEmbeddingConfig("video", 16)})
