"""Modality generators: what an output projector hands over, to media."""

from mmjax.generators.mask_decoder import MaskDecoder, MaskDecoderConfig

# The one place where a generator's config meets its module.
GENERATORS = {
    MaskDecoderConfig: MaskDecoder,
}
