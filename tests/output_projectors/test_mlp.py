"""The MLP beside torch's."""

import jax
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError
from mmjax.output_projectors.mlp import MLPOutput, MLPOutputConfig


@pytest.mark.parametrize("pooled", ["none", "mean"])
def test_equal_to_torch(pooled):
    torch.manual_seed(0)
    maps = {"fc1": torch.nn.Linear(5, 7), "fc2": torch.nn.Linear(7, 3)}
    theirs = torch.nn.Sequential(maps["fc1"], torch.nn.ReLU(), maps["fc2"])
    params = {
        name: {"kernel": one.weight.detach().numpy().T, "bias": one.bias.detach().numpy()} for name, one in maps.items()
    }
    module = MLPOutput(MLPOutputConfig(5, 7, 3, pooled=pooled))
    states = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    made = module.init(jax.random.key(0), states)["params"]
    assert {name: set(leaves) for name, leaves in made.items()} == dict.fromkeys(params, {"kernel", "bias"})
    found, wanted = module.apply({"params": params}, states), theirs(torch.tensor(states)).detach().numpy()
    np.testing.assert_allclose(found.sequence, wanted, atol=1e-5)
    assert (found.pooled is None) == (pooled == "none")
    if pooled == "mean":
        np.testing.assert_allclose(found.pooled, wanted.mean(axis=1), atol=1e-5)


def test_bad_options_are_named():
    with pytest.raises(ConfigError, match="pooled"):
        MLPOutputConfig(5, 7, 3, pooled="max")
    with pytest.raises(ConfigError, match="activation"):
        MLPOutputConfig(5, 7, 3, "rely")
