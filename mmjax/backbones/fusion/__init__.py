"""What a backbone does with media inside, beyond reading them where they stand in its text: one file a way."""

import functools
import operator

from mmjax.backbones.fusion.adapter_prompts import AdapterPrompts, AdapterPromptsConfig
from mmjax.backbones.fusion.adapter_prompts_v2 import AdapterPromptsV2, AdapterPromptsV2Config
from mmjax.backbones.fusion.deepstack import DeepStack, DeepStackConfig
from mmjax.backbones.fusion.gated_cross_attention import GatedCrossAttention, GatedCrossAttentionConfig
from mmjax.backbones.fusion.high_resolution import HighResolution, HighResolutionConfig
from mmjax.backbones.fusion.modality_adapters import ModalityAdapters, ModalityAdaptersConfig
from mmjax.backbones.fusion.modality_experts import ModalityExperts, ModalityExpertsConfig
from mmjax.backbones.fusion.visual_expert import VisualExpert, VisualExpertConfig

# The one place where a fusion's config meets its module.
FUSIONS = {
    GatedCrossAttentionConfig: GatedCrossAttention,
    AdapterPromptsConfig: AdapterPrompts,
    VisualExpertConfig: VisualExpert,
    DeepStackConfig: DeepStack,
    AdapterPromptsV2Config: AdapterPromptsV2,
    ModalityAdaptersConfig: ModalityAdapters,
    HighResolutionConfig: HighResolution,
    ModalityExpertsConfig: ModalityExperts,
}
FusionConfig = functools.reduce(operator.or_, FUSIONS)
