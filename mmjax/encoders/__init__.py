"""Modality encoders: media to features."""

from mmjax.encoders.vit import ViT, ViTConfig

# The one place where an encoder's config meets its module.
ENCODERS = {
    ViTConfig: ViT,
}
EncoderConfig = ViTConfig
