"""LLM backbones: which module runs which config."""

import flax.linen as nn

from mmjax.backbones.decoder import Decoder, DecoderConfig
from mmjax.backbones.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

BackboneConfig = DecoderConfig | EncoderDecoderConfig
BACKBONES: dict[type, type[nn.Module]] = {DecoderConfig: Decoder, EncoderDecoderConfig: EncoderDecoder}
