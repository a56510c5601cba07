"""The optimiser against torch.optim.AdamW, its schedules against their closed forms."""

import math

import jax
import numpy as np
import optax
import pytest
import torch

from mmjax.train.optimizer import decays, make_optimizer, schedule
from mmjax.train.stage import StageConfig


def stage(**options):
    options = {"steps": 12, "trainable": ((".*", "train"),), **options}
    return StageConfig(name="s", batch_size=2, **options)


@pytest.mark.parametrize("clip", [None, 0.7])
def test_updates_equal_torch_with_groups_decay_and_clipping(clip):
    axes = {"a/kernel": ("embed", "mlp"), "a/bias": ("mlp",), "b/scale": ("layers", "embed")}
    shapes = {"a/kernel": (5, 7), "a/bias": (7,), "b/scale": (3, 5)}
    multiplier = {"a/kernel": 1.0, "a/bias": 0.25, "b/scale": 3.0}
    config = stage(
        learning_rate=0.02, weight_decay=0.1, b1=0.8, b2=0.97, eps=1e-6, clip_norm=clip, schedule="linear"
    )
    optimizer = make_optimizer(config, multiplier, axes)
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    theirs = {path: torch.nn.Parameter(torch.tensor(leaf)) for path, leaf in params.items()}
    reference = torch.optim.AdamW(
        [
            {"params": [leaf], "lr": 0.0, "weight_decay": 0.1 if path == "a/kernel" else 0.0}
            for path, leaf in theirs.items()
        ],
        betas=(0.8, 0.97),
        eps=1e-6,
    )
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(12):
        grads = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for group, (path, leaf) in zip(reference.param_groups, theirs.items(), strict=True):
            leaf.grad = torch.tensor(grads[path])
            group["lr"] = 0.02 * (1 - step / 12) * multiplier[path]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        reference.step()
    for path, leaf in theirs.items():
        np.testing.assert_allclose(params[path], leaf.detach().numpy(), rtol=2e-5, atol=2e-6, err_msg=path)


def test_schedules_at_their_landmarks():
    cosine = schedule(stage(learning_rate=2.0, warmup_steps=4, final_fraction=0.1))
    assert [float(cosine(step)) for step in (0, 2, 4, 8, 12)] == pytest.approx([0, 1, 2, 1.1, 0.2])
    linear = schedule(stage(learning_rate=2.0, schedule="linear", final_fraction=0.5))
    assert [float(linear(step)) for step in (0, 6, 12)] == pytest.approx([2, 1.5, 1])
    constant = schedule(stage(learning_rate=2.0, schedule="constant", warmup_steps=2))
    assert [float(constant(step)) for step in (0, 1, 2, 11)] == pytest.approx([0, 1, 2, 2])
    third = schedule(stage(learning_rate=1.0))(3)
    assert float(third) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_only_matrices_decay():
    assert decays("backbone/blocks/attn/q/kernel", ("layers", "embed", "heads", "head_dim"))
    assert decays("backbone/embed/embedding", ("vocab", "embed"))
    assert decays("backbone/blocks/mlp/up/lora_a", ("layers", "embed", "rank"))
    assert not decays("backbone/blocks/attn/q/bias", ("layers", "heads", "head_dim"))
    assert not decays("backbone/blocks/attn_norm/scale", ("layers", "embed"))
    assert not decays("encoders/image/class_embedding", ("embed",))
