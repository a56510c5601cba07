"""Modality encoders: media to features."""

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
EncoderConfig = (
    ViTConfig | EfficientNetConfig | ConvNeXtConfig | ResNetConfig | SwinConfig | MixedEncoderConfig
)
