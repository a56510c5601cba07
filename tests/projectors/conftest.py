"""What the tests of projectors share: params of a projector, features, and the tolerance."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.contracts import Media
from mmjax.projectors import PROJECTORS


class Tools:
    """Short ways to run a projector by its config."""

    @staticmethod
    def init(config, num_features):
        """Params with every leaf drawn at random, so that no zero or one hides a mistake."""
        features = Media(jnp.zeros((1, num_features, config.in_width)), stage="encoded")
        make = jax.eval_shape(PROJECTORS[type(config)](config).init, jax.random.key(0), features)
        random = np.random.default_rng(0)
        draw = lambda leaf: (0.3 * random.normal(size=leaf.shape)).astype(np.float32)
        return jax.tree.map(draw, nn.unbox(make["params"]))

    @staticmethod
    def run(config, params, values, dtype=jnp.float32, **fields):
        """The projected Media of features [B, N, in_width]."""
        media = Media(jnp.asarray(values), stage="encoded", **fields)
        return jax.jit(PROJECTORS[type(config)](config, dtype).apply)({"params": params}, media)

    @staticmethod
    def close(mine, reference, tolerance=1e-4):
        """max abs diff <= tolerance * max(1, RMS of the reference), and same shapes."""
        mine = np.asarray(mine, np.float32)
        reference = np.asarray(reference.detach() if hasattr(reference, "detach") else reference, np.float32)
        assert mine.shape == reference.shape and np.isfinite(mine).all()
        bound = tolerance * max(1.0, float(np.sqrt(np.mean(np.square(reference)))))
        worst = float(np.max(np.abs(mine - reference), initial=0.0))
        assert worst <= bound, f"max abs diff {worst:.3g} > {bound:.3g}"


@pytest.fixture(scope="session")
def tools():
    return Tools


@pytest.fixture
def random():
    return np.random.default_rng(7)
