"""Input projectors: features of an encoder to tokens in the LLM's width."""

from mmjax.projectors.linear import LinearProjector, LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjector, MLPProjectorConfig

# The one place where a projector's config meets its module.
PROJECTORS = {
    LinearProjectorConfig: LinearProjector,
    MLPProjectorConfig: MLPProjector,
}
ProjectorConfig = LinearProjectorConfig | MLPProjectorConfig
