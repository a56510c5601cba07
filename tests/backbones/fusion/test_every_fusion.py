"""What every fusion keeps to: leaves with axes of the mesh, stacked by layer, and their config through a mapping."""

import dataclasses

import jax
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion import FUSIONS
from mmjax.backbones.fusion.adapter_prompts import AdapterPromptsConfig
from mmjax.backbones.fusion.gated_cross_attention import GatedCrossAttentionConfig
from mmjax.backbones.fusion.visual_expert import VisualExpertConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.distributed.rules import RULES, is_axes
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten

PLAIN = DecoderConfig(31, 12, 4, 6, 2, 4, 20)
WITH_PARAMETERS = [
    GatedCrossAttentionConfig(10, every=2, qk_norm=True),
    AdapterPromptsConfig(5, 2),
    VisualExpertConfig(),
]


@pytest.mark.parametrize("fusion", WITH_PARAMETERS, ids=lambda fusion: fusion.kind)
def test_leaves_and_their_axes(fusion):
    assert type(fusion) in FUSIONS
    config = MultimodalLMConfig(dataclasses.replace(PLAIN, fusion=fusion))
    assert from_dict(MultimodalLMConfig, to_dict(config)) == config
    model = MultimodalLM(config)
    shapes, axes = flatten(model.param_shapes()), flatten(jax.tree.map(list, model.param_axes(), is_leaf=is_axes))
    own = {path: leaf for path, leaf in shapes.items() if path.startswith("backbone/fusion/blocks/")}
    assert own and set(flatten(MultimodalLM(MultimodalLMConfig(PLAIN)).param_shapes())) == set(shapes) - set(own)
    for path, leaf in own.items():
        assert len(axes[path]) == leaf.ndim and axes[path][0] == "layers", path
        assert all(name is None or name in RULES for name in axes[path]), path
    assert len({leaf.shape[0] for leaf in own.values()}) == 1


def test_new_rows_of_the_vocabulary_are_leaves_of_their_own():
    model = MultimodalLM(MultimodalLMConfig(dataclasses.replace(PLAIN, new_tokens=3)))
    shapes = model.param_shapes()["backbone"]
    assert shapes["embed"]["embedding"].shape == (28, 12) and shapes["embed_new"]["embedding"].shape == (3, 12)
    assert shapes["lm_head"]["kernel"].shape == (12, 28) and shapes["lm_head_new"]["kernel"].shape == (12, 3)
    with pytest.raises(ConfigError, match="backbone.new_tokens must be at least 0 and below vocab_size 31, got 31"):
        dataclasses.replace(PLAIN, new_tokens=31)
