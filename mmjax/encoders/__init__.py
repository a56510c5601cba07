"""Modality encoders: media to features.

A config has `feature_width`, `item_shape` (of one raw item, without batch) and `num_tokens(grid, original_size)`.
Its module has `__call__` (Media to Media), `run` (a batch of items through the whole tower, to what transformers
calls its outputs) and `create` (touches every parameter once, for `init`).
"""

import functools
import operator

from mmjax.encoders.ast import AST, ASTConfig
from mmjax.encoders.clap import CLAP, CLAPConfig
from mmjax.encoders.convnext import ConvNeXt, ConvNeXtConfig
from mmjax.encoders.dct import DCT, DCTConfig
from mmjax.encoders.efficientnet import EfficientNet, EfficientNetConfig
from mmjax.encoders.frames import Frames, FramesConfig
from mmjax.encoders.imagebind import ImageBindTower, ImageBindTowerConfig
from mmjax.encoders.mixed import MixedEncoder, MixedEncoderConfig
from mmjax.encoders.point_cloud import PointCloud, PointCloudConfig
from mmjax.encoders.qwen2_vision import Qwen2Vision, Qwen2VisionConfig
from mmjax.encoders.raw_patches import RawPatches, RawPatchesConfig
from mmjax.encoders.region_items import RegionItems, RegionItemsConfig
from mmjax.encoders.resnet import ResNet, ResNetConfig
from mmjax.encoders.sam import SamEncoder, SamEncoderConfig
from mmjax.encoders.swin import Swin, SwinConfig
from mmjax.encoders.tile_adapters import TileAdapters, TileAdaptersConfig
from mmjax.encoders.timesformer import TimeSformer, TimeSformerConfig
from mmjax.encoders.vector import Vector, VectorConfig
from mmjax.encoders.video_vit import VideoViT, VideoViTConfig
from mmjax.encoders.vit import ViT, ViTConfig
from mmjax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from mmjax.encoders.whisper import WhisperEncoder, WhisperEncoderConfig

# The one place where an encoder's config meets its module.
ENCODERS = {
    ViTConfig: ViT,
    EfficientNetConfig: EfficientNet,
    ConvNeXtConfig: ConvNeXt,
    ResNetConfig: ResNet,
    SwinConfig: Swin,
    SamEncoderConfig: SamEncoder,
    WhisperEncoderConfig: WhisperEncoder,
    ASTConfig: AST,
    CLAPConfig: CLAP,
    Wav2Vec2Config: Wav2Vec2,
    PointCloudConfig: PointCloud,
    ImageBindTowerConfig: ImageBindTower,
    VideoViTConfig: VideoViT,
    TimeSformerConfig: TimeSformer,
    Qwen2VisionConfig: Qwen2Vision,
    MixedEncoderConfig: MixedEncoder,
    FramesConfig: Frames,
    RawPatchesConfig: RawPatches,
    VectorConfig: Vector,
    DCTConfig: DCT,
    TileAdaptersConfig: TileAdapters,
    RegionItemsConfig: RegionItems,
}
EncoderConfig = functools.reduce(operator.or_, ENCODERS)
