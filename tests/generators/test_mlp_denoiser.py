"""The residual MLP beside one of torch's own layers, written from MAR's paper; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.mlp_denoiser import MLPDenoiser, MLPDenoiserConfig
from mmjax.infer.cache import unstack

torch = pytest.importorskip("torch")

CONFIG = MLPDenoiserConfig(
    in_channels=5, out_channels=3, sample_size=3, width=20, num_layers=2, hidden=28, context_width=7, context_tokens=2
)


def random_params(config: MLPDenoiserConfig, seed: int = 0):
    """Normal numbers in the place of fresh parameters, whose gates are zero."""
    module = MLPDenoiser(config)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, *config.feature_shape)), method="create")["params"]
    )
    random = np.random.default_rng(seed)
    is_box = lambda leaf: hasattr(leaf, "unbox")
    return jax.tree.map(
        lambda box: jnp.asarray(random.normal(size=box.unbox().shape).astype(np.float32) * 0.15), shapes, is_leaf=is_box
    )


def given(config: MLPDenoiserConfig, batch: int, seed: int = 1):
    random = np.random.default_rng(seed)
    x = random.normal(size=(batch, *config.feature_shape)).astype(np.float32)
    tokens = random.normal(size=(batch, config.context_tokens, config.context_width)).astype(np.float32)
    return x, random.integers(0, 1000, batch).astype(np.float32), tokens


def torch_linear(params, x):
    return torch.nn.functional.linear(x, params["kernel"].T, params["bias"])


def torch_denoiser(params, config, x, times, tokens):
    """Of torch's linear, layer_norm and silu, block by block; params as torch tensors."""
    silu, batch = torch.nn.functional.silu, len(x)

    def mlp(tree, x):
        return torch_linear(tree["down"], silu(torch_linear(tree["up"], x)))

    def normed(x, shift, scale):
        return torch.nn.functional.layer_norm(x, (config.width,), eps=1e-6) * (1 + scale) + shift

    def vectors(tree, count):
        kernel = tree["kernel"].reshape(config.width, -1)
        return torch.nn.functional.linear(silu(vector), kernel.T, tree["bias"].reshape(-1)).chunk(count, dim=-1)

    speed = torch.exp(-np.log(10000.0) * torch.arange(128) / 128)
    angle = times[:, None] * speed
    vector = mlp(params["time"], torch.cat([angle.cos(), angle.sin()], -1))
    vector = vector + mlp(params["context"], tokens.reshape(batch, -1))
    h = torch_linear(params["proj_in"], x.reshape(batch, -1))
    for layer in range(config.num_layers):
        tree = jax.tree.map(lambda leaf: leaf[layer], params["blocks"])  # noqa: B023
        shift, scale, gate = vectors(tree["modulation"], 3)
        h = h + gate * mlp(tree["mlp"], normed(h, shift, scale))
    shift, scale = vectors(params["modulation"], 2)
    return torch_linear(params["proj_out"], normed(h, shift, scale)).reshape(
        batch, config.sample_size, config.sample_size, config.out_channels
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_equals_torch_with_gradients(batch):
    params, (x, times, tokens) = random_params(CONFIG), given(CONFIG, batch)
    wanted = np.random.default_rng(2).normal(size=(batch, 3, 3, 3)).astype(np.float32)

    def ours(params, x, tokens):
        said = MLPDenoiser(CONFIG).apply({"params": params}, x, times, Condition(tokens))
        return jnp.sum(said * wanted), said

    (_, said), grads = jax.value_and_grad(ours, argnums=(0, 1, 2), has_aux=True)(params, x, tokens)
    leaf = lambda array: torch.tensor(np.asarray(array), requires_grad=True)
    theirs = jax.tree.map(leaf, (params, x, tokens))
    out = torch_denoiser(theirs[0], CONFIG, theirs[1], torch.tensor(times), theirs[2])
    np.testing.assert_allclose(said, out.detach().numpy(), atol=1e-5)
    (out * torch.tensor(wanted)).sum().backward()
    for ours, other in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        assert np.abs(other.grad.numpy()).max() > 0
        np.testing.assert_allclose(ours, other.grad.numpy(), atol=1e-4 * np.abs(other.grad.numpy()).max())


def test_a_row_is_no_matter_of_another_and_layers_may_be_apart():
    params, (x, times, tokens) = random_params(CONFIG), given(CONFIG, 3)
    call = lambda params, *row: MLPDenoiser(CONFIG).apply({"params": params}, row[0], row[1], Condition(row[2]))
    whole = call(params, x, times, tokens)
    np.testing.assert_allclose(call(params, x[1:2], times[1:2], tokens[1:2]), whole[1:2], atol=1e-5)
    np.testing.assert_allclose(call(unstack(params), x, times, tokens), whole, atol=1e-5)


def test_bad_input():
    params, (x, times, tokens) = random_params(CONFIG), given(CONFIG, 2)
    call = lambda x, condition: MLPDenoiser(CONFIG).apply({"params": params}, x, times, condition)
    with pytest.raises(ValueError, match=r"latents are \(2, 2, 3, 5\); wanted \[B, 3, 3, 5\]"):
        call(x[:, :2], Condition(tokens))
    with pytest.raises(ValueError, match="1 tokens; wanted 2"):
        call(x, Condition(tokens[:, :1]))
    with pytest.raises(ValueError, match="with a mask; wanted 2"):
        call(x, Condition(tokens, np.ones((2, 2), bool)))
    with pytest.raises(ValueError, match=r"sequence is \(2, 2, 6\)"):
        call(x, Condition(tokens[..., :6]))
    with pytest.raises(ConfigError, match="activation"):
        MLPDenoiserConfig(5, 3, 3, 20, 2, 28, 7, 2, "sin")
    with pytest.raises(ConfigError, match="num_layers must be at least 1"):
        MLPDenoiserConfig(5, 3, 3, 20, 0, 28, 7, 2)
