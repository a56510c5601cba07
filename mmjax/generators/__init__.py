"""Modality generators: what an output projector hands over, to media.

A config has `condition_width`, the channels of a condition's tokens, `feature_shape`, the shape of what its `create` is
called with, and `check_encoder(encoder)`, which raises ConfigError where the features of an encoder of the generator's
own (None: there is none) are not what it reads. What a signal is and how the parts are joined: `mmjax.signals`.
"""

import functools
import operator

from mmjax.generators.decision import Decision, DecisionConfig
from mmjax.generators.diffusion import Diffusion, DiffusionConfig
from mmjax.generators.mask_decoder import MaskDecoder, MaskDecoderConfig
from mmjax.generators.next_embedding import NextEmbedding, NextEmbeddingConfig
from mmjax.generators.retrieval import Retrieval, RetrievalConfig

# The one place where a generator's config meets its module.
GENERATORS = {
    MaskDecoderConfig: MaskDecoder,
    DiffusionConfig: Diffusion,
    NextEmbeddingConfig: NextEmbedding,
    RetrievalConfig: Retrieval,
    DecisionConfig: Decision,
}
GeneratorConfig = functools.reduce(operator.or_, GENERATORS)
