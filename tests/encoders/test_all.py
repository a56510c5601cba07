"""Every encoder inside a multimodal model: shapes, counts, gradients, axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.distributed.rules import is_axes, spec
from mmjax.encoders import ENCODERS
from mmjax.encoders.ast import ASTConfig
from mmjax.encoders.clap import CLAPConfig
from mmjax.encoders.convnext import ConvNeXtConfig
from mmjax.encoders.dct import DCTConfig
from mmjax.encoders.efficientnet import EfficientNetConfig, EfficientNetStage
from mmjax.encoders.frames import FramesConfig
from mmjax.encoders.imagebind import ImageBindTowerConfig
from mmjax.encoders.mixed import MixedEncoderConfig
from mmjax.encoders.point_cloud import PointCloudConfig
from mmjax.encoders.qwen2_vision import Qwen2VisionConfig
from mmjax.encoders.raw_patches import RawPatchesConfig
from mmjax.encoders.region_items import RegionItemsConfig
from mmjax.encoders.resnet import ResNetConfig
from mmjax.encoders.sam import SamEncoderConfig
from mmjax.encoders.swin import SwinConfig
from mmjax.encoders.tile_adapters import TileAdaptersConfig
from mmjax.encoders.timesformer import TimeSformerConfig
from mmjax.encoders.vector import VectorConfig
from mmjax.encoders.video_vit import VideoViTConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.encoders.wav2vec2 import Wav2Vec2Config
from mmjax.encoders.whisper import WhisperEncoderConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten
from mmjax.projectors.linear import LinearProjectorConfig

SIZES = dict(image_size=13, patch_size=4, width=12, num_layers=2, num_heads=3, mlp_width=16)
PLAIN = dict(pre_norm=False, patch_bias=True, final_norm=True, feature_norm=True)
DINOV2 = dict(PLAIN, layer_scale=0.5, mask_token=True)
CONFIGS = {
    "clip": ViTConfig(**SIZES, feature_layers=(-2,), feature_strategy="patches"),
    "siglip": ViTConfig(**SIZES, **PLAIN, class_token=False, pool="attention"),
    "siglip2": ViTConfig(
        **SIZES, **PLAIN, class_token=False, pool="none", resize_positions="bilinear_antialias"
    ),
    "vit": ViTConfig(**SIZES, **PLAIN, pool="dense", keep_patches=0.5),
    "dinov2": ViTConfig(**SIZES, **DINOV2, resize_positions="bicubic", gated=True, activation="silu"),
    "registers": ViTConfig(
        **SIZES, **DINOV2, resize_positions="bicubic_antialias", num_registers=3, feature_strategy="patches"
    ),
    "eva": ViTConfig(**SIZES, **PLAIN, pool="class_twice"),
    "convnext": ConvNeXtConfig(24, 3, (6, 10), (2, 1), layer_scale=0.1, feature_stages=(0, 1)),
    "convnextv2": ConvNeXtConfig(25, 3, (6, 10), (1, 2), layer_scale=None, response_norm=True),
    "resnet": ResNetConfig(33, 8, (8, 16), (2, 2)),
    "resnet, basic": ResNetConfig(33, 8, (8, 16), (1, 2), bottleneck=False, feature_stages=(-1, 0)),
    "sam": SamEncoderConfig(13, 3, 12, 2, 3, 16, 10, window_size=3, global_layers=(1,)),
    "swin": SwinConfig(24, 3, 6, (2, 1), (2, 3), window_size=3, absolute_positions=True),
    "whisper": WhisperEncoderConfig(5, 7, 12, 2, 3, 16),
    "wav2vec2": Wav2Vec2Config(
        37, 12, 2, 3, 16, (5, 7), (6, 3), (4, 2), position_kernel=4, position_groups=2, mask_token=True
    ),
    "clap": CLAPConfig(31, 13, 32, 4, 4, 6, (1, 1), (2, 3), window_size=2, fusion=True),
    "ast": ASTConfig(14, 9, 12, 2, 3, 16, patch_size=4, frequency_stride=3, time_stride=5),
    "efficientnet": EfficientNetConfig(24, 24, 8, (EfficientNetStage(3, 1, 1, 8, 1),), 10, pool="none"),
}
CONFIGS["point cloud"] = PointCloudConfig(19, 6, 5, 4, 12, 2, 3, 16, group_width=10, point_widths=(6, 7))
CONFIGS["imagebind"] = ImageBindTowerConfig("imu", (13, 6), (4,), 12, 2, 3, 16, 10, clips=2, logit_scale=5.0)
CONFIGS["qwen2 vision"] = Qwen2VisionConfig(
    12, 2, 3, 16, patch_size=3, merge_size=1, window=2, full_layers=(1,), position_grid=3, feature_layers=(-1, 1)
)
CONFIGS["mixed"] = MixedEncoderConfig({"clip": CONFIGS["clip"], "convnext": CONFIGS["convnextv2"]}, 13, 3)
CONFIGS["videomae"] = VideoViTConfig(5, 9, 2, 4, 12, 2, 3, 16)
CONFIGS["vivit"] = VideoViTConfig(
    4, 9, 2, 4, 12, 2, 3, 16, positions="learned", class_token=True, final_norm=True, pool="dense", key_bias=True
)
CONFIGS["timesformer"] = TimeSformerConfig(3, 9, 4, 12, 2, 3, 16)
CONFIGS["frames"] = FramesConfig(CONFIGS["clip"], 2)
CONFIGS["raw patches"] = RawPatchesConfig(3)
PACKED = ("siglip2", "qwen2 vision", "raw patches")


def model_of(encoder):
    backbone = DecoderConfig(40, 16, 1, 2, 1, 8, 24)
    projector = LinearProjectorConfig(encoder.feature_width, 16)
    return MultimodalLM(MultimodalLMConfig(backbone, {"image": encoder}, {"image": projector}, {"image": 3}))


def media_of(name, encoder):
    rng = np.random.default_rng(0)
    if name not in PACKED:
        values = rng.normal(size=(2, 2, *encoder.item_shape)).astype(np.float32)
        return Media(values, np.array([[1, 2], [1, 0]], np.int32)), encoder.num_tokens() * 2
    grid = np.array([[[1, 2, 3], [1, 4, 1]], [[1, 1, 5], [1, 1, 1]]])
    segments = np.repeat([[1, 2], [1, 0]], [6, 5], axis=1).astype(np.int32)
    segments[0, 10:], segments[1, 5:] = 0, 0
    values = rng.normal(size=(2, 11, getattr(encoder, "patch_width", 3 * encoder.patch_size**2))).astype(np.float32)
    assert [encoder.num_tokens(item) for item in grid[0]] == [6, 4]
    return Media(values, segments, grid), 11


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_inside_a_multimodal_model(name):
    encoder = CONFIGS[name]
    assert from_dict(type(encoder), to_dict(encoder)) == encoder
    model = model_of(encoder)
    media, count = media_of(name, encoder)
    index = np.full((2, count + 2), -1, np.int32)
    index[:, 1 : count + 1] = np.arange(count)
    tokens = np.where(index < 0, 5, 3).astype(np.int32)
    positions = np.tile(np.arange(count + 2, dtype=np.int32), (2, 1))
    text = TextStream(tokens, positions, np.ones_like(tokens), media_index=index)
    shapes, axes = model.param_shapes(), model.param_axes()
    out = jax.eval_shape(model.__call__, shapes, Batch({"text": text}, {"image": media}))
    assert out.logits.shape == (2, count + 2, 40)

    leaves, named = flatten(shapes), flatten(axes)
    assert set(leaves) == set(named)
    for path, leaf in leaves.items():
        assert is_axes(named[path]) and len(named[path]) == leaf.ndim, path
        spec(named[path])
    blocks = [path for path, names in named.items() if path.startswith("encoders/") and names[:1] == ("layers",)]
    assert bool(blocks) == (name not in ("efficientnet", "raw patches"))


def few(names, quick):
    """Parameters of a grid, of which all but a few are slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", few(CONFIGS, ("siglip2", "whisper", "raw patches")))
def test_gradients_reach_through(name):
    model = model_of(CONFIGS[name])
    media, count = media_of(name, CONFIGS[name])
    params = jax.jit(model.init)(jax.random.key(0))

    def loss(part):
        projected = model.encode_media({**params, **part}, {"image": media})["image"]
        weight = jnp.asarray(projected.segment_ids > 0, jnp.float32)[..., None]
        return jnp.sum(jnp.sin(projected.values) * weight), projected

    part = {key: params[key] for key in ("encoders", "projectors") if key in params}
    slopes, projected = jax.jit(jax.grad(loss, has_aux=True))(part)
    assert projected.values.shape == (2, count, 16) and projected.segment_ids.shape == (2, count)
    slopes = flatten(slopes)
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    moved = {path for path, slope in slopes.items() if np.abs(slope).max() > 0}
    assert {"projectors/image/out/kernel", *first_and_last(name)} <= moved


def first_and_last(name):
    """The map of the patches and something of the last block: gradients reach through the whole encoder."""
    paths = {
        "clip": ("patch_embed/kernel", "blocks/attn/q/kernel"),
        "convnext": ("stem/kernel", "stage_1/kernel"),
        "convnextv2": ("stem/kernel", "stage_1/kernel", "stage_1/response_norm/scale"),
        "resnet": ("stem/kernel", "stage_1_rest/conv_2/kernel"),
        "resnet, basic": ("stem/kernel", "stage_0_first/conv_1/kernel"),
        "swin": ("stem/kernel", "stage_1/attn/offsets", "position_embedding"),
        "efficientnet": ("stem/kernel", "head/kernel"),
        "wav2vec2": ("conv_0/kernel", "positions/gain", "blocks/mlp/down/kernel"),
        "clap": ("mel_norm/scale", "swin/stage_0/attn/offsets", "swin/merge_1/out/kernel"),
        "whisper": ("conv_1/kernel", "conv_2/bias", "blocks/mlp/down/kernel"),
        "point cloud": ("group_embed/point_1/kernel", "class_embedding", "blocks/mlp/down/kernel"),
        "timesformer": ("time_embedding", "blocks/time_out/kernel", "blocks/mlp/down/kernel"),
        "frames": ("frame/patch_embed/kernel", "frame/blocks/mlp/down/kernel"),
        "raw patches": (),
        "mixed": ("clip/patch_embed/kernel", "convnext/stem/kernel", "convnext/stage_1/kernel"),
    }
    return [f"encoders/image/{path}" for path in paths.get(name, ("patch_embed/kernel", "blocks/mlp/down/kernel"))]


def test_every_encoder_is_here():
    # Regions are no images: test_model_regions.py. Those that wrap a tower here, and vectors, have tests of their own.
    elsewhere = {RegionItemsConfig, TileAdaptersConfig, DCTConfig, VectorConfig}
    assert {type(config) for config in CONFIGS.values()} | elsewhere == set(ENCODERS)
