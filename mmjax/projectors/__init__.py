"""Input projectors: features of an encoder to tokens in the LLM's width."""

from mmjax.projectors.linear import LinearProjector, LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjector, MLPProjectorConfig
from mmjax.projectors.pooled import PooledProjector, PooledProjectorConfig

# The one place where a projector's config meets its module.
PROJECTORS = {
    LinearProjectorConfig: LinearProjector,
    MLPProjectorConfig: MLPProjector,
    PooledProjectorConfig: PooledProjector,
}
ProjectorConfig = LinearProjectorConfig | MLPProjectorConfig | PooledProjectorConfig
