"""Input projectors: features of an encoder to tokens in the LLM's width."""

import functools
import operator

from mmjax.projectors.abstractor import AbstractorConfig, AbstractorProjector
from mmjax.projectors.cif import CIFConfig, CIFProjector
from mmjax.projectors.class_tokens import ClassTokens, ClassTokensConfig
from mmjax.projectors.deep_merge import DeepMergeConfig, DeepMergeProjector
from mmjax.projectors.downsample import MergeConfig, MergeProjector, PoolConfig, PoolProjector
from mmjax.projectors.latent_attention import LatentAttentionConfig, LatentAttentionProjector
from mmjax.projectors.ldp import LDPConfig, LDPProjector, LDPv2Config, LDPv2Projector
from mmjax.projectors.linear import LinearProjector, LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjector, MLPProjectorConfig
from mmjax.projectors.perceiver import PerceiverConfig, PerceiverProjector
from mmjax.projectors.pooled import PooledProjector, PooledProjectorConfig
from mmjax.projectors.prompted import PromptedConfig, PromptedProjector
from mmjax.projectors.qformer import QFormerConfig, QFormerProjector
from mmjax.projectors.regions.region_tokens import RegionTokens, RegionTokensConfig
from mmjax.projectors.resampler import ResamplerConfig, ResamplerProjector
from mmjax.projectors.similarity import SimilarityConfig, SimilarityProjector
from mmjax.projectors.spatio_temporal import SpatioTemporalConfig, SpatioTemporalProjector
from mmjax.projectors.tiles import TilesConfig, TilesProjector
from mmjax.projectors.video_qformer import VideoQFormerConfig, VideoQFormerProjector

# The one place where a projector's config meets its module.
PROJECTORS = {
    LinearProjectorConfig: LinearProjector,
    MLPProjectorConfig: MLPProjector,
    PooledProjectorConfig: PooledProjector,
    ClassTokensConfig: ClassTokens,
    QFormerConfig: QFormerProjector,
    PerceiverConfig: PerceiverProjector,
    LatentAttentionConfig: LatentAttentionProjector,
    ResamplerConfig: ResamplerProjector,
    MergeConfig: MergeProjector,
    DeepMergeConfig: DeepMergeProjector,
    PoolConfig: PoolProjector,
    LDPConfig: LDPProjector,
    LDPv2Config: LDPv2Projector,
    AbstractorConfig: AbstractorProjector,
    CIFConfig: CIFProjector,
    TilesConfig: TilesProjector,
    SpatioTemporalConfig: SpatioTemporalProjector,
    VideoQFormerConfig: VideoQFormerProjector,
    SimilarityConfig: SimilarityProjector,
    RegionTokensConfig: RegionTokens,
    PromptedConfig: PromptedProjector,
}
ProjectorConfig = functools.reduce(operator.or_, PROJECTORS)
