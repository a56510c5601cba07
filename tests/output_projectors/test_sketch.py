"""The sketch and the tokens of a signal, written out in numpy."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.output_projectors.sketch import SketchOutput, SketchOutputConfig
from mmjax.paths import flatten


def test_both_maps_read_standardised_states():
    config = SketchOutputConfig(in_width=6, width=5, signal_tokens=3, sketch_shape=(2, 4, 7))
    random = np.random.default_rng(0)
    states = random.normal(size=(2, 3, 6)).astype(np.float32)
    module = SketchOutput(config)
    shapes = flatten(nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), states))["params"]))
    assert {path: leaf.shape for path, leaf in shapes.items()} == {
        "mean": (3, 6), "std": (3, 6), "tokens/kernel": (6, 5), "tokens/bias": (5,), "sketch/kernel": (18, 56),
        "sketch/bias": (56,),
    }  # fmt: skip
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {
        "mean": normal(3, 6),
        "std": np.abs(normal(3, 6)) + 0.1,
        "tokens": {"kernel": normal(6, 5), "bias": normal(5)},
        "sketch": {"kernel": normal(18, 56), "bias": normal(56)},
    }
    out = module.apply({"params": params}, states)
    x = np.clip((states - params["mean"]) / params["std"], -5, 5)
    assert np.abs(x).max() == 5, "no state is so far from the others that it is cut off"
    np.testing.assert_allclose(out.sequence, x @ params["tokens"]["kernel"] + params["tokens"]["bias"], atol=1e-4)
    sketch = (x.reshape(2, 18) @ params["sketch"]["kernel"] + params["sketch"]["bias"]).reshape(2, 2, 4, 7)
    np.testing.assert_allclose(out.extras["sketch"], sketch, atol=1e-4)
    nothing = module.apply({"params": params}, np.zeros_like(states))
    np.testing.assert_array_equal(nothing.extras["sketch"].reshape(2, -1)[0], params["sketch"]["bias"])
    np.testing.assert_array_equal(nothing.sequence[1, 2], params["tokens"]["bias"])
    assert config.num_tokens(3) == out.sequence.shape[1]


def test_what_does_not_fit_is_said():
    with pytest.raises(ConfigError, match="sketch_shape is \\(2, 0, 7\\)"):
        SketchOutputConfig(6, 5, 3, (2, 0, 7))
    module = SketchOutput(SketchOutputConfig(6, 5, 3, (2, 2, 1)))
    with pytest.raises(ValueError, match="wanted \\[B, 3, 6\\]"):
        module.init(jax.random.key(0), np.zeros((1, 4, 6), np.float32))
