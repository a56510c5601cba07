"""What every fusion keeps to: stacked leaves with axes of a mesh, which changes nothing; its config as a mapping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion import FUSIONS
from mmjax.backbones.fusion.adapter_prompts import AdapterPromptsConfig
from mmjax.backbones.fusion.adapter_prompts_v2 import AdapterPromptsV2Config
from mmjax.backbones.fusion.gated_cross_attention import GatedCrossAttentionConfig
from mmjax.backbones.fusion.high_resolution import HighResolutionConfig
from mmjax.backbones.fusion.modality_adapters import ModalityAdaptersConfig
from mmjax.backbones.fusion.modality_experts import ModalityExpertsConfig
from mmjax.backbones.fusion.visual_expert import VisualExpertConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.distributed.rules import RULES, is_axes, shardings
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten

PLAIN = DecoderConfig(31, 12, 4, 6, 2, 4, 20)
WITH_PARAMETERS = [
    GatedCrossAttentionConfig(10, every=2, qk_norm=True),
    AdapterPromptsConfig(5, 2),
    VisualExpertConfig(),
    AdapterPromptsV2Config(5, 2, 1),
    ModalityAdaptersConfig(3),
    HighResolutionConfig(10, 4, 2),
    ModalityExpertsConfig(3, 2, 4.0),
]


@pytest.mark.parametrize("fusion", WITH_PARAMETERS, ids=lambda fusion: fusion.kind)
def test_leaves_and_their_axes(fusion):
    assert type(fusion) in FUSIONS
    config = MultimodalLMConfig(dataclasses.replace(PLAIN, fusion=fusion))
    assert from_dict(MultimodalLMConfig, to_dict(config)) == config
    model = MultimodalLM(config)
    shapes, axes = flatten(model.param_shapes()), flatten(jax.tree.map(list, model.param_axes(), is_leaf=is_axes))
    own = {path: leaf for path, leaf in shapes.items() if path.startswith("backbone/fusion/")}
    assert own and set(flatten(MultimodalLM(MultimodalLMConfig(PLAIN)).param_shapes())) == set(shapes) - set(own)
    depths = {}
    for path, leaf in own.items():
        stack, _, inner = path.partition("/blocks/")
        assert len(axes[path]) == leaf.ndim and (axes[path][0] == "layers") == bool(inner), path
        assert all(name is None or name in RULES for name in axes[path]), path
        assert not inner or depths.setdefault(stack, leaf.shape[0]) == leaf.shape[0], path


def test_new_rows_of_the_vocabulary_are_leaves_of_their_own():
    model = MultimodalLM(MultimodalLMConfig(dataclasses.replace(PLAIN, new_tokens=3)))
    shapes = model.param_shapes()["backbone"]
    assert shapes["embed"]["embedding"].shape == (28, 12) and shapes["embed_new"]["embedding"].shape == (3, 12)
    assert shapes["lm_head"]["kernel"].shape == (12, 28) and shapes["lm_head_new"]["kernel"].shape == (12, 3)
    with pytest.raises(ConfigError, match="backbone.new_tokens must be at least 0 and below vocab_size 31, got 31"):
        dataclasses.replace(PLAIN, new_tokens=31)


@pytest.mark.quick("modality_experts")
@pytest.mark.parametrize("fusion", WITH_PARAMETERS, ids=lambda fusion: fusion.kind)
def test_a_mesh_gives_the_hidden_states_and_gradients_of_one_device(fusion, slow):
    model = MultimodalLM(MultimodalLMConfig(dataclasses.replace(PLAIN, vocab_size=32, fusion=fusion)))
    params = slow.drawn(model, spread=0.2)
    rng = np.random.default_rng(0)
    tokens = 1 if isinstance(fusion, AdapterPromptsConfig) else 3
    width = fusion.memory_width(model.config.backbone.block) if hasattr(fusion, "memory_width") else 2
    memory = jnp.asarray(rng.normal(size=(4, tokens, width)), jnp.float32)
    if getattr(fusion, "of_rows", False):
        memory = jnp.asarray(rng.integers(0, 2, (4, 1, 2)), jnp.float32)
    seen = jnp.asarray(rng.random((4, 8, memory.shape[1])) < 0.6)
    is_media = jnp.asarray(rng.random((4, 8)) < 0.4) if getattr(fusion, "of_media", False) else None
    positions = jnp.broadcast_to(jnp.arange(8), (4, 8))
    x = jnp.asarray(rng.normal(size=(4, 8, 12)), jnp.float32)

    def loss(own, params):
        params = {"backbone": {**params["backbone"], "fusion": own}}
        mask = jnp.tril(jnp.ones((1, 8, 8), bool))
        hidden, _ = model.step(params, x, positions, mask, memory=(memory, seen), is_media=is_media)
        return jnp.sum(jnp.sin(hidden)), hidden

    run = jax.value_and_grad(loss, has_aux=True)
    (_, alone), wanted = jax.jit(run)(params["backbone"]["fusion"], params)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(model.param_axes(), mesh))
        (_, hidden), found = jax.jit(run)(placed["backbone"]["fusion"], placed)
    np.testing.assert_allclose(hidden, alone, rtol=0, atol=2e-5)
    for path, leaf in flatten(found).items():
        np.testing.assert_allclose(leaf, flatten(wanted)[path], rtol=1e-3, atol=5e-5, err_msg=path)
