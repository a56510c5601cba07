"""Any encoder x any projector x any backbone x any fusion: the whole product, forward, as shapes alone.

What cannot be joined must say so with an error that names the part and both numbers. Which those are is written down
here: one that begins to fail, or to work, fails the test. What is the same in many products is traced once: a backbone
sees nothing of the parts before it but the shapes of what they give.
"""

import dataclasses
import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones import BACKBONES
from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.backbones.fusion import FUSIONS
from mmjax.backbones.fusion.adapter_prompts import AdapterPromptsConfig
from mmjax.backbones.fusion.adapter_prompts_v2 import AdapterPromptsV2Config
from mmjax.backbones.fusion.deepstack import DeepStackConfig
from mmjax.backbones.fusion.gated_cross_attention import GatedCrossAttentionConfig
from mmjax.backbones.fusion.high_resolution import HighResolutionConfig
from mmjax.backbones.fusion.modality_adapters import ModalityAdaptersConfig
from mmjax.backbones.fusion.modality_experts import ModalityExpertsConfig
from mmjax.backbones.fusion.visual_expert import VisualExpertConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, Media, TextStream
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
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.moe import MixtureConfig
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
from mmjax.projectors.prompter import PrompterConfig
from mmjax.projectors.qformer import QFormerConfig
from mmjax.projectors.regions.region_tokens import RegionTokensConfig
from mmjax.projectors.resampler import ResamplerConfig
from mmjax.projectors.similarity import SimilarityConfig
from mmjax.projectors.spatio_temporal import SpatioTemporalConfig
from mmjax.projectors.tiles import TilesConfig
from mmjax.projectors.video_qformer import VideoQFormerConfig

WIDTH, VOCABULARY, BATCH = 24, 40, 2
DECODER = DecoderConfig(VOCABULARY, WIDTH, 2, 2, 1, 12, 28)
FUSION = {
    "gated_cross_attention": GatedCrossAttentionConfig(WIDTH, every=2),
    "adapter_prompts": AdapterPromptsConfig(3, 1),
    "adapter_prompts_v2": AdapterPromptsV2Config(3, 1, 1),
    "visual_expert": VisualExpertConfig(),
    "high_resolution": HighResolutionConfig(WIDTH, 2, 4),
    "deepstack": DeepStackConfig(1),
    "modality_adapters": ModalityAdaptersConfig(4),
    "modality_experts": ModalityExpertsConfig(2, 3, 3.0),
}
BACKBONE = {
    "decoder": DECODER,
    "experts": dataclasses.replace(DECODER, moe=MixtureConfig(3, 2, 8)),
    "encoder-decoder": EncoderDecoderConfig(VOCABULARY, WIDTH, 1, 2, 12, 28),
    **{name: dataclasses.replace(DECODER, fusion=fusion) for name, fusion in FUSION.items()},
}
# Those whose media are read inside and leave nothing in the text.
INSIDE = ("gated_cross_attention", "adapter_prompts", "adapter_prompts_v2", "high_resolution")
VIT = ViTConfig(16, 4, 12, 1, 3, 16, feature_strategy="patches")
CONVNEXT = ConvNeXtConfig(16, 2, (6, 12), (1, 1))
# Those in GRIDS give whole grids of 4 x 4 features and nothing else, one or several.
ENCODER = {
    "vit": VIT,
    "convnext": CONVNEXT,
    "resnet": ResNetConfig(32, 8, (8, 12), (1, 1)),
    "swin": SwinConfig(16, 2, 6, (1, 1), (2, 3), window_size=2),
    "sam": SamEncoderConfig(16, 4, 12, 1, 3, 16, 12, window_size=2, global_layers=(0,)),
    "mixed": MixedEncoderConfig({"vit": VIT, "convnext": CONVNEXT}, 16, 4),
    "frames": FramesConfig(VIT, 2),
    "video_vit": VideoViTConfig(4, 16, 2, 4, 12, 1, 3, 16),
    "imagebind": ImageBindTowerConfig("imu", (13, 6), (4,), 12, 1, 3, 16, 12, feature_strategy="full"),
    "whisper": WhisperEncoderConfig(5, 7, 12, 1, 3, 16),
    "wav2vec2": Wav2Vec2Config(37, 12, 1, 3, 16, (5, 7), (6, 3), (4, 2), position_kernel=4, position_groups=2),
    "ast": ASTConfig(14, 9, 12, 1, 3, 16, patch_size=4, frequency_stride=3, time_stride=5),
    "point_cloud": PointCloudConfig(19, 6, 5, 4, 12, 1, 3, 16, group_width=10, point_widths=(6, 7)),
    "timesformer": TimeSformerConfig(3, 9, 4, 12, 1, 3, 16),
    "efficientnet": EfficientNetConfig(24, 24, 8, (EfficientNetStage(3, 1, 1, 8, 1),), 12, pool="global+2x2"),
    "clap": CLAPConfig(31, 13, 32, 4, 4, 6, (1, 1), (2, 3), window_size=2, fusion=True),
    "raw_patches": RawPatchesConfig(2),
    "tile_adapters": TileAdaptersConfig(VIT, (1, 2), LoRAConfig(2, 3.0, ("q", "o"))),
    "dct": DCTConfig(SwinConfig(16, 4, 6, (1, 1), (2, 3), window_size=2)),
    "vector": VectorConfig(12),
    "qwen2_vision": Qwen2VisionConfig(12, 1, 3, 16, patch_size=2, merge_size=2),
}
GRIDS = {
    "vit": 1, "convnext": 1, "resnet": 1, "swin": 1, "sam": 1, "mixed": 1, "clap": 1, "frames": 2, "video_vit": 2,
    "tile_adapters": 3,
}  # fmt: skip
QFORMER = dict(num_queries=3, query_width=12, num_layers=2, num_heads=2, mlp_width=14)
PERCEIVER = dict(num_latents=3, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=6, mlp_width=14)
# How a projector for `count` features of `channels` channels is made.
PROJECTOR = {
    "linear": lambda channels, count: LinearProjectorConfig(channels, WIDTH),
    "class_tokens": lambda channels, count: ClassTokensConfig(channels, WIDTH, 3, count),
    "mlp": lambda channels, count: MLPProjectorConfig(channels, 14, WIDTH),
    "pooled": lambda channels, count: PooledProjectorConfig(channels, WIDTH, num_local=count - 1, hidden=14),
    "qformer": lambda channels, count: QFormerConfig(channels, WIDTH, num_features=count, **QFORMER),
    "prompted": lambda channels, count: PromptedConfig(
        QFormerConfig(channels, WIDTH, num_features=count, **QFORMER), PrompterConfig(VOCABULARY, 3, 12, 1, 2, 14)
    ),
    "perceiver": lambda channels, count: PerceiverConfig(
        channels, WIDTH, latent_width=WIDTH, input_map="linear", num_features=count, **PERCEIVER
    ),
    "latent_attention": lambda channels, count: LatentAttentionConfig(
        channels, WIDTH, 3, num_heads=2, num_features=count
    ),
    "cif": lambda channels, count: CIFConfig(
        channels, WIDTH, 3, hidden=8, num_heads=2, mlp_width=14, num_features=count
    ),
    "spatio_temporal": lambda channels, count: SpatioTemporalConfig(LinearProjectorConfig(channels, WIDTH), 1, count),
    "resampler": lambda channels, count: ResamplerConfig(channels, WIDTH, (4, 4), (3, 2), num_heads=2),
    "merge": lambda channels, count: MergeConfig(channels, WIDTH, 2, (4, 4)),
    "pool": lambda channels, count: PoolConfig(channels, WIDTH, (4, 4), (2, 2)),
    "ldp": lambda channels, count: LDPConfig(channels, WIDTH, (4, 4)),
    "ldp_v2": lambda channels, count: LDPv2Config(channels, WIDTH, (4, 4), (2, 2)),
    "abstractor": lambda channels, count: AbstractorConfig(
        channels, WIDTH, (4, 4), (2, 2), hidden=8, depth=1
    ),
    "tiles": lambda channels, count: TilesConfig(
        LinearProjectorConfig(channels, WIDTH), 16, 4, ((16, 32), (32, 16))
    ),
}
OF_GRIDS = ("resampler", "merge", "pool", "ldp", "ldp_v2", "abstractor")


def impossible(encoder, projector):
    """What the error says where the two cannot be joined, else None."""
    if projector in OF_GRIDS and encoder not in GRIDS:
        return f"{projector} projector: .* features are no whole number of 4 x 4 grids"
    if projector == "tiles" and GRIDS.get(encoder) != 1:
        return "tiles projector: .* features a tile are no grid of 4 x 4"
    return None


def model_of(encoder, projector, backbone):
    config = ENCODER[encoder]
    made = PROJECTOR[projector](config.feature_width, config.num_tokens())
    # What the encoder gives must be what the projector takes.
    made.num_tokens(config.num_tokens())
    where = {"inside": ("media",)} if backbone in INSIDE else {"media_tokens": {"media": 3}}
    return MultimodalLM(MultimodalLMConfig(BACKBONE[backbone], {"media": config}, {"media": made}, **where))


def media_of(model):
    """Two rows with one item each, and how many tokens it becomes."""
    encoder, projector = model.config.encoders["media"], model.config.projectors["media"]
    entries, size, grid = 1, None, None
    if isinstance(projector, TilesConfig):
        size = (16, 32)
        entries = projector.num_tiles(size)
    shape = (entries, *encoder.item_shape)
    if getattr(encoder, "packed", False):
        # The smallest item: one patch, or one square of patches.
        grid = (1, math.isqrt(shape[1]), math.isqrt(shape[1]))
        shape = encoder.item_shape
    count = model.num_tokens("media", grid, size)
    order = None
    if size is not None:
        order = np.tile(model.config.arrangement("media", grid, size)[0][:, 0] + 1, (BATCH, 1))
    grids = None if grid is None else np.tile(np.array(grid, np.int32), (BATCH, 1, 1))
    values, segments = np.zeros((BATCH, *shape), np.float32), np.ones((BATCH, shape[0]), np.int32)
    return Media(values, segments, grids, order=order), count


def texts_of(model, count):
    """Texts in which the tokens of that item stand, or that see it inside the backbone."""
    standing = 0 if model.config.inside else count
    tokens = np.ones((BATCH, standing + 3), np.int32)
    index = np.full(tokens.shape, -1, np.int32)
    index[:, 1 : standing + 1] = np.arange(standing)
    positions = np.tile(np.arange(standing + 3, dtype=np.int32), (BATCH, 1))
    seen = np.ones((*tokens.shape, 1), bool) if model.config.inside else None
    text = TextStream(tokens, positions, np.ones_like(tokens), media_index=index, media_attention=seen)
    if model.config.streams == ("text",):
        return {"text": text}
    short = np.ones((BATCH, 4), np.int32)
    return {"query": text, "decoder": TextStream(short, np.cumsum(short, axis=1) - 1, short)}


@functools.cache
def projected(encoder, projector):
    """The shapes of the Media that the two make of an item, and its tokens."""
    model = model_of(encoder, projector, "decoder")
    config, key = model.config.encoders["media"], jax.random.key(0)
    encoded = encoder_shapes(encoder)
    features = Media(np.zeros((1, config.num_tokens(), config.feature_width), np.float32), stage="encoded")
    made = jax.eval_shape(lambda: nn.unbox(model.projector("media").init(key, features)["params"]))
    media, count = media_of(model)
    params = {"encoders": {"media": encoded}, "projectors": {"media": made}}
    return jax.eval_shape(model.encode_media, params, {"media": media})["media"], count


@functools.cache
def encoder_shapes(encoder):
    model = model_of(encoder, "linear", "decoder")
    items = np.zeros((1, *model.config.encoders["media"].item_shape), np.float32)
    init = lambda: model.encoder("media").init(jax.random.key(0), items, method="create").get("params", {})
    return jax.eval_shape(lambda: nn.unbox(init()))


@functools.cache
def backbone_shapes(backbone):
    model = model_of("vit", "linear", backbone)
    init = lambda: model.backbone.init(jax.random.key(0), np.zeros((1, 1), np.int32), method="create")["params"]
    return jax.eval_shape(lambda: nn.unbox(init()))


FORWARD = {}


def forward(backbone, media, count):
    """The shape of the logits of a backbone for Media of these shapes; traced once for all that give them."""
    key = backbone, count, repr(media)
    if key not in FORWARD:
        model = model_of("vit", "linear", backbone)

        def run(params, texts, media):
            return model.logits(params, model.forward(params, texts, {"media": media}))

        params = {"backbone": backbone_shapes(backbone)}
        FORWARD[key] = jax.eval_shape(run, params, texts_of(model, count), media).shape
    return FORWARD[key]


# In every backbone in `make test`: many tokens an item, and one.
EVERYWHERE = ("vit", "linear"), ("vector", "linear")


def cases():
    """All pairs in all backbones, of which `make test` has the impossible and every part beside the plainest others."""
    others = [name for name in BACKBONE if name != "decoder"]
    for pair in itertools.product(ENCODER, PROJECTOR):
        wrong, name = impossible(*pair) is not None, "-".join(pair)
        quick = wrong or pair[0] == "vit" or pair[1] == "linear"
        yield pytest.param(*pair, ["decoder"], id=name, marks=[] if quick else [pytest.mark.slow])
        quick = wrong or pair in EVERYWHERE
        yield pytest.param(*pair, others, id=f"{name}-other backbones", marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize("encoder, projector, backbones", list(cases()))
def test_forward_or_a_clear_error(encoder, projector, backbones):
    """One pair in a decoder, or in every other backbone with every fusion."""
    wrong = impossible(encoder, projector)
    for backbone in backbones:
        if wrong is not None:
            with pytest.raises(ConfigError, match=wrong):
                model_of(encoder, projector, backbone)
            continue
        model = model_of(encoder, projector, backbone)
        media, count = projected(encoder, projector)
        assert media.stage == "projected" and media.values.shape == (BATCH, count, WIDTH)
        if backbone == "adapter_prompts" and count != 1:
            with pytest.raises(ValueError, match=f"are added one media token a row, got {count}"):
                forward(backbone, media, count)
            continue
        written = texts_of(model, count)[model.config.streams[-1]].tokens
        assert forward(backbone, media, count) == (*written.shape, VOCABULARY)


@pytest.mark.parametrize("backbone", BACKBONE)
def test_a_whole_model_at_once(backbone):
    """The parts as `MultimodalLM` puts them together: the same leaves, the same shapes."""
    model = model_of("vit", "resampler", backbone)
    shapes = model.param_shapes()
    assert jax.tree.map(jnp.shape, shapes["backbone"]) == jax.tree.map(jnp.shape, backbone_shapes(backbone))
    media, count = media_of(model)
    if backbone == "adapter_prompts":
        return
    logits = jax.eval_shape(model, shapes, Batch(texts_of(model, count), {"media": media})).logits
    assert logits.shape == forward(backbone, *projected("vit", "resampler"))


def test_every_part_is_here():
    # Regions are read from the features of images at another port, see their own tests.
    assert {type(config) for config in ENCODER.values()} | {RegionItemsConfig} == set(ENCODERS)
    made = {type(make(12, 5)) for make in PROJECTOR.values()}
    # Tiles that are compared and frames in a row are items of several features, see their own tests.
    made |= {SimilarityConfig, VideoQFormerConfig}
    # What the other layers give of a deep merge enters inside a backbone made for it, see its own test.
    assert made | {DeepMergeConfig, RegionTokensConfig} == set(PROJECTORS)
    assert {type(config) for config in BACKBONE.values()} == set(BACKBONES)
    assert {type(config) for config in FUSION.values()} == set(FUSIONS)


def test_widths_that_differ_are_named():
    made = dataclasses.replace(PROJECTOR["linear"](12, 16), in_width=13)
    with pytest.raises(ConfigError, match="projectors.media.in_width is 13; its encoder gives 12"):
        MultimodalLMConfig(BACKBONE["decoder"], {"media": VIT}, {"media": made}, {"media": 3})
    made = dataclasses.replace(PROJECTOR["linear"](12, 16), width=25)
    with pytest.raises(ConfigError, match="projectors.media.width is 25; the backbone's is 24"):
        MultimodalLMConfig(BACKBONE["decoder"], {"media": VIT}, {"media": made}, {"media": 3})
