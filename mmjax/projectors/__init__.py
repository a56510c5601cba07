"""Input projectors: features of an encoder to tokens in the LLM's width."""

import functools
import operator

from mmjax.projectors.abstractor import AbstractorConfig, AbstractorProjector
from mmjax.projectors.downsample import MergeConfig, MergeProjector, PoolConfig, PoolProjector
from mmjax.projectors.ldp import LDPConfig, LDPProjector, LDPv2Config, LDPv2Projector
from mmjax.projectors.linear import LinearProjector, LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjector, MLPProjectorConfig
from mmjax.projectors.perceiver import PerceiverConfig, PerceiverProjector
from mmjax.projectors.pooled import PooledProjector, PooledProjectorConfig
from mmjax.projectors.qformer import QFormerConfig, QFormerProjector
from mmjax.projectors.resampler import ResamplerConfig, ResamplerProjector

# The one place where a projector's config meets its module.
PROJECTORS = {
    LinearProjectorConfig: LinearProjector,
    MLPProjectorConfig: MLPProjector,
    PooledProjectorConfig: PooledProjector,
    QFormerConfig: QFormerProjector,
    PerceiverConfig: PerceiverProjector,
    ResamplerConfig: ResamplerProjector,
    MergeConfig: MergeProjector,
    PoolConfig: PoolProjector,
    LDPConfig: LDPProjector,
    LDPv2Config: LDPv2Projector,
    AbstractorConfig: AbstractorProjector,
}
ProjectorConfig = functools.reduce(operator.or_, PROJECTORS)
