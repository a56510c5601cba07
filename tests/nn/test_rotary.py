"""Rotary frequencies against transformers' own initialisers, rotation against its Llama code."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from mmjax.config import ConfigError
from mmjax.nn.rotary import RopeScaling, frequencies, rotate, rotation

CASES = [
    (None, {"rope_type": "default"}),
    (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
    (
        RopeScaling("llama3", 8.0, 64, 1.0, 4.0),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    (
        RopeScaling("yarn", 4.0, 64),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    (
        RopeScaling("yarn", 16.0, 32, mscale=1.0, mscale_all_dim=0.7, truncate=False),
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 32,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "truncate": False,
        },
    ),
]


def reference_config(head_dim, theta, parameters):
    config = LlamaConfig(
        hidden_size=3 * head_dim,
        num_attention_heads=3,
        head_dim=head_dim,
        max_position_embeddings=512,
        rope_parameters={**parameters, "rope_theta": theta},
    )
    return config


@pytest.mark.parametrize("scaling, parameters", CASES)
@pytest.mark.parametrize("head_dim, theta", [(10, 10000.0), (64, 500000.0)])
def test_frequencies_equal_transformers(scaling, parameters, head_dim, theta):
    config = reference_config(head_dim, theta, parameters)
    if parameters["rope_type"] == "default":
        theirs, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        theirs, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    ours, our_factor = frequencies(head_dim, theta, scaling)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6)
    assert our_factor == pytest.approx(factor, rel=1e-6)


def test_rotation_equals_transformers_at_any_positions():
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(2, 5, heads, 12)).astype(np.float32) for heads in (6, 2))
    positions = rng.integers(0, 300, (2, 5))
    embedding = LlamaRotaryEmbedding(reference_config(12, 10000.0, {"rope_type": "default"}))
    # Both are given the same frequencies: those of torch differ in the last bit from one machine to the next, which a
    # position of 300 turns into an angle that differs by 2e-5.
    embedding.inv_freq = torch.tensor(frequencies(12, 10000.0)[0])
    cos, sin = embedding(torch.zeros(1), torch.tensor(positions))
    heads_first = lambda x: torch.tensor(x).transpose(1, 2)
    theirs = apply_rotary_pos_emb(heads_first(q), heads_first(k), cos, sin)
    ours = (rotate(x, *rotation(positions, 12, 10000.0)) for x in (q, k))
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, reference.transpose(1, 2).numpy(), atol=1e-5)


def test_scaling_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="llama3"):
        RopeScaling("llama-3", 2.0)
    with pytest.raises(ConfigError, match="original_max_positions"):
        RopeScaling("yarn", 2.0)
    with pytest.raises(ConfigError, match="factor"):
        RopeScaling("linear", 0.5)
