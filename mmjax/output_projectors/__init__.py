"""Output projectors: hidden states of an LLM at its signal tokens to what a generator is conditioned on.

A config has `in_width` (D of the LLM), `width`, `num_tokens(signal_tokens)` and `adds_embeddings`, whether the LLM's
embeddings of a signal's tokens are added to their states before. Its module is called with the states
[B, K, D] of one signal of K tokens a row and gives a `Condition` of N tokens a row.
"""

import functools
import operator

from mmjax.output_projectors.linear import LinearOutput, LinearOutputConfig
from mmjax.output_projectors.mlp import MLPOutput, MLPOutputConfig
from mmjax.output_projectors.queries import QueriesOutput, QueriesOutputConfig
from mmjax.output_projectors.sketch import SketchOutput, SketchOutputConfig

# The one place where an output projector's config meets its module.
OUTPUT_PROJECTORS = {
    LinearOutputConfig: LinearOutput,
    MLPOutputConfig: MLPOutput,
    QueriesOutputConfig: QueriesOutput,
    SketchOutputConfig: SketchOutput,
}
OutputProjectorConfig = functools.reduce(operator.or_, OUTPUT_PROJECTORS)
