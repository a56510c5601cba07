"""MMDiT by itself: axes, and gradients that reach the condition as in torch."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.data.contracts import Condition
from mmjax.distributed.rules import spec
from mmjax.generators.mmdit import MMDiT, MMDiTConfig
from mmjax.interop.diffusers import load
from mmjax.paths import flatten

CONFIG = MMDiTConfig(
    in_channels=3, out_channels=3, width=8, num_heads=2, num_layers=4, twice_layers=1, context_width=5, pooled_width=3,
    max_grid=4, sample_size=4,
)  # fmt: skip


def test_every_leaf_has_axes_and_stacks_have_their_layers():
    module = MMDiT(CONFIG)
    x = jnp.zeros((1, *CONFIG.feature_shape))
    boxes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, method="create")["params"])
    for path, box in flatten(boxes).items():
        assert len(box.names) == box.value.ndim, path
        spec(box.names)
    layers = {name: jax.tree.leaves(boxes[name])[0].shape[0] for name in ("twice", "blocks")}
    assert layers == {"twice": 1, "blocks": 2}
    assert "image_attn_2" in boxes["twice"] and "image_attn_2" not in boxes["last"]
    assert "text_mlp" not in boxes["last"] and "o" not in boxes["last"]["text_attn"]


@pytest.mark.slow
def test_gradients_reach_the_condition_as_in_torch(tmp_path):
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        sample_size=4, in_channels=3, out_channels=3, num_layers=3, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=5, caption_projection_dim=8, pooled_projection_dim=3, pos_embed_max_size=4,
        qk_norm="rms_norm",
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    rng = np.random.default_rng(0)
    x, noise, sequence, pooled = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 6, 3), (2, 4, 6, 3), (2, 7, 5), (2, 3))
    )
    times = np.array([10.0, 500.0], np.float32)
    leaves = [torch.tensor(array, requires_grad=True) for array in (sequence, pooled)]
    images = [torch.tensor(array.transpose(0, 3, 1, 2)) for array in (x, noise)]
    out = model(images[0], *leaves, torch.tensor(times)).sample
    torch.nn.functional.mse_loss(out, images[1]).backward()

    @jax.jit
    def slope(sequence, pooled):
        run = MMDiT(loaded.config, remat="full").apply
        return jnp.mean(jnp.square(run({"params": loaded.params}, x, times, Condition(sequence, None, pooled)) - noise))

    for mine, leaf in zip(jax.grad(slope, argnums=(0, 1))(sequence, pooled), leaves, strict=True):
        wanted = leaf.grad.numpy()
        assert np.abs(mine - wanted).max() <= 1e-4 * max(np.sqrt(np.mean(wanted**2)), 1e-3)
