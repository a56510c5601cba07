"""A decoder written a second time in numpy, token by token, into which a test puts what its fusion does."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest


class SlowDecoder:
    """One text [T, D] through rotary, grouped, gated blocks in float64.

    Methods that a test replaces by attributes: `maps(layer, at)`, the parameters of a token; `linear(layer, name, y)`,
    behind a linear map; `before(layer, h)`, what attention reads; `more(layer, q, keys_of)`, what heads get besides,
    with `keys_of(memory)` -> keys, values; `between(layer, x)`; `feed(layer, h, mlp)`, the MLP.
    """

    def __init__(self, config, backbone):
        self.config, self.backbone = config, backbone
        self.linear = lambda layer, name, y: y
        self.before = lambda layer, h: h
        self.more = lambda layer, q, keys_of: 0.0
        self.between = lambda layer, x: x
        self.feed = lambda layer, h, mlp: mlp(h)
        self.maps = lambda layer, at: self.at(backbone["blocks"], layer)

    @staticmethod
    def at(tree, layer):
        return jax.tree.map(lambda leaf: np.asarray(leaf[layer], np.float64), tree)

    @staticmethod
    def softmax(x):
        x = np.exp(x - x.max(axis=-1, keepdims=True))
        return x / x.sum(axis=-1, keepdims=True)

    def norm(self, x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.config.norm_eps) * scale

    def rotated(self, heads):
        half = self.config.head_dim // 2
        turn = np.exp(1j * np.arange(len(heads))[:, None] / 10000.0 ** (np.arange(half) / half))[:, None]
        pairs = (heads[..., :half] + 1j * heads[..., half:]) * turn
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    def attend(self, q, k, v, mask):
        """q [T, H, C], k and v [S, K, C], mask [T, S] -> [T, H, C]; zeros where a token sees nothing."""
        out = np.zeros_like(q)
        for at, head in np.ndindex(q.shape[:2]):
            seen, group = np.flatnonzero(mask[at]), head // (q.shape[1] // k.shape[1])
            if len(seen):
                weights = self.softmax(k[seen, group] @ q[at, head] / np.sqrt(q.shape[2]))
                out[at, head] = weights @ v[seen, group]
        return out

    def __call__(self, x):
        """x [T, D] -> final-normed [T, D]."""
        x = np.array(x, np.float64)
        for layer in range(self.config.num_layers):
            text = self.at(self.backbone["blocks"], layer)
            own = [self.maps(layer, at) for at in range(len(x))]

            def project(rows, name, maps, layer=layer):
                ys = [np.tensordot(row, m["attn"][name]["kernel"], 1) for row, m in zip(rows, maps, strict=True)]
                return self.linear(layer, name, np.stack(ys))

            h = self.before(layer, self.norm(x, text["attn_norm"]["scale"]))
            q, k, v = (project(h, name, own) for name in "qkv")
            q, k = self.rotated(q), self.rotated(k)
            heads = self.attend(q, k, v, np.tril(np.ones((len(x), len(x)), bool)))
            keys_of = lambda memory: [project(memory, name, [text] * len(memory)) for name in "kv"]  # noqa: B023
            heads = heads + self.more(layer, q, keys_of)
            outs = [np.tensordot(row, m["attn"]["o"]["kernel"], 2) for row, m in zip(heads, own, strict=True)]
            x = self.between(layer, x + self.linear(layer, "o", np.stack(outs)))

            def mlp(rows, own=own, layer=layer):
                ys = {}
                for name in ("gate", "up"):
                    ys[name] = np.stack([row @ m["mlp"][name]["kernel"] for row, m in zip(rows, own, strict=True)])
                    ys[name] = self.linear(layer, name, ys[name])
                inner = ys["gate"] / (1 + np.exp(-ys["gate"])) * ys["up"]
                down = [row @ m["mlp"]["down"]["kernel"] for row, m in zip(inner, own, strict=True)]
                return self.linear(layer, "down", np.stack(down))

            x = x + self.feed(layer, self.norm(x, text["mlp_norm"]["scale"]), mlp)
        return self.norm(x, np.asarray(self.backbone["norm"]["scale"], np.float64))


def drawn(model, seed=0, spread=0.3):
    """Params of the size that `init` gives, all moved at random: gates open, scales off one."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        center = 1.0 if path[-1].key in ("scale", "tuned_scale") else 0.0
        return jax.numpy.asarray(center + spread * rng.normal(size=shape.shape), jax.numpy.float32)

    return jax.tree_util.tree_map_with_path(draw, model.param_shapes())


def fresh(model):
    """Params of which the fusion is what the model's initialiser makes; to compile all of it takes far longer."""
    params, make = drawn(model), jax.jit(lambda key: model.init(key)["backbone"]["fusion"])
    return {**params, "backbone": {**params["backbone"], "fusion": make(jax.random.key(0))}}


@pytest.fixture(scope="session")
def slow():
    """`slow.Decoder`, `slow.drawn` and `slow.fresh`."""
    return SimpleNamespace(Decoder=SlowDecoder, drawn=drawn, fresh=fresh)
