"""Region projectors: maps of an image and regions of it to LLM tokens for each region.

A config has `in_widths` (channels of each map that it reads), `width` (D of the LLM), `tokens` (of a region) and
`takes`, "boxes" (float [B, R, 4], x1, y1, x2, y2 as shares of the image's sides) or "masks" ([B, R, h, w], not 0
inside). Its module is called with a list of maps [B, h, w, C] and the regions, and gives [B, R, tokens, D]; what it
gives for padding regions means nothing.
"""

import functools
import operator

from mmjax.projectors.regions.mask_tokens import MaskTokens, MaskTokensConfig
from mmjax.projectors.regions.roi_token import RoIToken, RoITokenConfig
from mmjax.projectors.regions.sampled_token import SampledToken, SampledTokenConfig

# The one place where a region projector's config meets its module.
REGIONS = {
    RoITokenConfig: RoIToken,
    MaskTokensConfig: MaskTokens,
    SampledTokenConfig: SampledToken,
}
RegionConfig = functools.reduce(operator.or_, REGIONS)
