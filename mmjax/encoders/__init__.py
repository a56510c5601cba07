"""Modality encoders: media to features."""

from mmjax.encoders.efficientnet import EfficientNet, EfficientNetConfig
from mmjax.encoders.vit import ViT, ViTConfig

# The one place where an encoder's config meets its module.
ENCODERS = {
    ViTConfig: ViT,
    EfficientNetConfig: EfficientNet,
}
EncoderConfig = ViTConfig | EfficientNetConfig
