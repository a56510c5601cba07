"""Modality encoders: media to features.

A config has `feature_width`, `item_shape` (of one raw item, without batch) and `num_tokens(grid, original_size)`.
Its module has `__call__` (Media to Media), `run` (a batch of items through the whole tower, to what transformers
calls its outputs) and `create` (touches every parameter once, for `init`).
"""

import functools
import operator

from mmjax.encoders.convnext import ConvNeXt, ConvNeXtConfig
from mmjax.encoders.efficientnet import EfficientNet, EfficientNetConfig
from mmjax.encoders.mixed import MixedEncoder, MixedEncoderConfig
from mmjax.encoders.resnet import ResNet, ResNetConfig
from mmjax.encoders.swin import Swin, SwinConfig
from mmjax.encoders.vit import ViT, ViTConfig

# The one place where an encoder's config meets its module.
ENCODERS = {
    ViTConfig: ViT,
    EfficientNetConfig: EfficientNet,
    ConvNeXtConfig: ConvNeXt,
    ResNetConfig: ResNet,
    SwinConfig: Swin,
    MixedEncoderConfig: MixedEncoder,
}
EncoderConfig = functools.reduce(operator.or_, ENCODERS)
