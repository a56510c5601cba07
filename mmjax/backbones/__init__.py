"""LLM backbones."""

from mmjax.backbones.decoder import DecoderConfig

BackboneConfig = DecoderConfig
