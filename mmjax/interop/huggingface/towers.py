"""All families of vision transformers, by their `model_type`.

Each module has `vision_from_hf`, `vision_to_hf` and `tower_rows` for use inside larger models.
"""

from types import ModuleType

from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import blip2_vision, clip, dinov2, siglip, siglip2, vit

VISION: dict[str, ModuleType] = {
    "clip_vision_model": clip,
    "siglip_vision_model": siglip,
    "siglip2_vision_model": siglip2,
    "vit": vit,
    "dinov2": dinov2,
    "dinov2_with_registers": dinov2,
    "blip_2_vision_model": blip2_vision,
}


def tower_family(config: ViTConfig) -> ModuleType:
    """The family that a vision transformer is written as."""
    if config.layer_scale is not None:
        return dinov2
    if config.resize_positions == "bilinear_antialias":
        return siglip2
    if config.class_token and config.final_norm:
        return blip2_vision if config.pool == "class_twice" else vit
    return clip if config.class_token else siglip
