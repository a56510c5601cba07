"""What every projector owes to the model: shapes and counts inside MultimodalLM, gradients, axes, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.distributed.rules import is_axes, spec
from mmjax.encoders.vit import ViTConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten
from mmjax.projectors import PROJECTORS
from mmjax.projectors.abstractor import AbstractorConfig
from mmjax.projectors.cif import CIFConfig
from mmjax.projectors.class_tokens import ClassTokensConfig
from mmjax.projectors.deep_merge import DeepMergeConfig
from mmjax.projectors.downsample import MergeConfig, PoolConfig
from mmjax.projectors.latent_attention import LatentAttentionConfig
from mmjax.projectors.ldp import LDPConfig, LDPv2Config
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjectorConfig
from mmjax.projectors.perceiver import PerceiverConfig
from mmjax.projectors.pooled import PooledProjectorConfig
from mmjax.projectors.prompted import PromptedConfig
from mmjax.projectors.qformer import QFormerConfig
from mmjax.projectors.regions.region_tokens import RegionTokensConfig
from mmjax.projectors.resampler import ResamplerConfig
from mmjax.projectors.similarity import SimilarityConfig
from mmjax.projectors.spatio_temporal import SpatioTemporalConfig
from mmjax.projectors.tiles import TilesConfig
from mmjax.projectors.video_qformer import VideoQFormerConfig

# Images of 4 x 4 patches, 12 channels a feature, 20 in the LLM; two images a row.
GRID, FEATURES, IN, OUT = (4, 4), 16, 12, 20
QFORMER = dict(num_queries=3, query_width=12, num_layers=3, num_heads=2, mlp_width=14, num_features=FEATURES)
PERCEIVER = dict(num_latents=3, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=5, mlp_width=14)
CONFIGS = {
    "linear": LinearProjectorConfig(IN, OUT),
    "mlp": MLPProjectorConfig(IN, 14, OUT),
    "pooled": PooledProjectorConfig(IN, OUT, num_local=FEATURES - 1, hidden=14, dropout=0.0),
    "class tokens": ClassTokensConfig(IN, OUT, 3, FEATURES),
    "qformer": QFormerConfig(IN, OUT, **QFORMER),
    "qformer with text": QFormerConfig(IN, OUT, vocab_size=9, max_positions=7, **QFORMER),
    "perceiver, idefics": PerceiverConfig(
        IN, OUT, latent_width=IN, qk_norm=True, output_map=True, num_features=FEATURES, **PERCEIVER
    ),
    "perceiver, idefics2": PerceiverConfig(
        IN,
        OUT,
        latent_width=OUT,
        gated=True,
        norm="rms",
        input_map="gated_mlp",
        input_hidden=15,
        max_frames=2,
        frame_features=8,
        num_features=FEATURES,
        **PERCEIVER,
    ),
    "latent attention": LatentAttentionConfig(IN, OUT, 3, num_heads=2, output_scale=2.0, num_features=FEATURES),
    "resampler": ResamplerConfig(IN, OUT, GRID, (3, 3), num_heads=2, post=True),
    "merge": MergeConfig(IN, OUT, 2, GRID),
    "merge in blocks": MergeConfig(IN, OUT, 2, order="blocks", norm_at="before", hidden=14),
    "pool": PoolConfig(IN, OUT, GRID, (2, 3), hidden=14),
    "pool, normed": PoolConfig(IN, OUT, GRID, (2, 2), pool_first=True, norm="rms", norm_offset=1.0, bias=False),
    "ldp": LDPConfig(IN, OUT, GRID),
    "ldp_v2": LDPv2Config(IN, OUT, GRID, (3, 2)),
    "cif": CIFConfig(IN, OUT, 6, hidden=5, num_heads=2, mlp_width=14, num_features=FEATURES),
    "abstractor": AbstractorConfig(IN, OUT, GRID, (3, 2), hidden=14, depth=2, end_tokens=1),
    "spatio-temporal": SpatioTemporalConfig(MLPProjectorConfig(IN, 14, OUT), 2, FEATURES // 2),
}


def test_every_projector_is_here():
    # Of tiles, the LLM gets what the host arranges: test_tiles.py; some tokens are wider than it: test_deep_merge.py.
    # Regions are read from their images' maps: test_model_regions.py.
    # What is trained beside prompts has a loss of its own: tests/train/test_prompt_loss.py.
    # Tiles that are compared and frames in a row are items of several features: test_similarity, test_video_qformer.
    elsewhere = {TilesConfig, DeepMergeConfig, RegionTokensConfig, PromptedConfig, SimilarityConfig, VideoQFormerConfig}
    assert {type(config) for config in CONFIGS.values()} | elsewhere == set(PROJECTORS)
    kinds = [config.kind for config in PROJECTORS]
    assert len(set(kinds)) == len(kinds)


def instruction(config):
    """Two rows of 4 tokens for a Q-Former that reads text; one token is padding."""
    if not getattr(config, "vocab_size", None):
        return None
    tokens = np.array([[1, 2, 3, 4], [5, 6, 7, 0]], np.int32)
    return TextStream(tokens, np.tile(np.arange(4, dtype=np.int32), (2, 1)), (tokens > 0).astype(np.int32))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_inside_a_model(name):
    projector = CONFIGS[name]
    config = MultimodalLMConfig(
        backbone=DecoderConfig(32, OUT, 1, 2, 2, 10, 24),
        encoders={"image": ViTConfig(16, 4, IN, 1, 2, 16, feature_strategy="patches")},
        projectors={"image": projector},
        media_tokens={"image": 31},
    )
    assert from_dict(MultimodalLMConfig, to_dict(config)) == config
    model = MultimodalLM(config)
    each = model.num_tokens("image")
    length = 2 * each + 3
    index = np.full((2, length), -1, np.int32)
    index[:, 1 : 1 + 2 * each] = np.arange(2 * each)
    ones = np.ones((2, length), np.int32)
    text = TextStream(ones, np.cumsum(ones, axis=1) - 1, ones, media_index=index)
    pixels, segments = np.zeros((2, 2, 16, 16, 3), np.float32), np.array([[1, 2], [1, 0]], np.int32)
    images = Media(pixels, segments, text=instruction(projector))

    shapes, axes = model.param_shapes(), flatten(model.param_axes())

    def run(params, batch):
        media = model.encode_media(params, batch.media)
        return media["image"], model(params, batch.replace(media=media)).logits

    media, logits = jax.eval_shape(run, shapes, Batch({"text": text}, {"image": images}))
    assert media.stage == "projected" and logits.shape == (2, length, 32)
    assert (media.values.shape, media.segment_ids.shape) == ((2, 2 * each, OUT), (2, 2 * each))
    shapes = flatten(shapes)
    assert axes.keys() == shapes.keys()
    for path, leaf in shapes.items():
        assert is_axes(axes[path]) and len(axes[path]) == leaf.ndim, path
        spec(axes[path])  # every axis has a rule, and no two share a mesh axis


QUICK = ("mlp", "ldp", "merge", "resampler", "cif")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_gradients_and_bfloat16(tools, random, name):
    config = CONFIGS[name]
    params = tools.init(config, FEATURES)
    values = random.normal(size=(2, 2 * FEATURES, IN)).astype(np.float32)
    segments = np.repeat(np.array([[1, 2], [1, 0]], np.int32), FEATURES, axis=1)
    media = Media(values, segments, text=instruction(config), stage="encoded")
    weights = random.normal(size=(2, 2 * config.num_tokens(FEATURES), OUT)).astype(np.float32)

    def loss(params):
        out = PROJECTORS[type(config)](config).apply({"params": params}, media, True)
        return jnp.mean(out.values * weights), out.values

    def both(params):
        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return out, grads, PROJECTORS[type(config)](config, jnp.bfloat16).apply({"params": params}, media)

    out, grads, half = jax.jit(both)(params)
    for path, grad in flatten(grads).items():
        assert np.isfinite(grad).all(), path
        size = float(jnp.abs(grad).max())
        if path.endswith(("/k/bias", "/k_norm/bias")):
            # The same number on every key of a query: softmax does not see it, in exact numbers.
            assert size < 1e-4, path
        else:
            assert size > 1e-6, path
    assert half.values.dtype == jnp.bfloat16
    scale = float(jnp.sqrt(jnp.mean(jnp.square(out))))
    assert float(jnp.mean(jnp.abs(half.values.astype(jnp.float32) - out))) < 0.03 * scale
