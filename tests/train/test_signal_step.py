"""A step of LLM, output projector and denoiser: on a mesh what it is on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.contracts import Batch, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh, put_batch
from mmjax.distributed.rules import shardings
from mmjax.encoders.text import TextEncoderConfig
from mmjax.generators.autoencoder import AutoencoderConfig
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.generators.unet import UNetConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.output_projectors import QueriesOutputConfig
from mmjax.paths import flatten, unflatten
from mmjax.train.signal_loss import SignalLoss
from mmjax.train.stage import StageConfig, split
from mmjax.train.step import batch_shards, check_rows, init_state, make_train_step, state_shardings

SIGNAL = (62, 63)
MODEL = MultimodalLM(
    MultimodalLMConfig(
        DecoderConfig(64, 32, 2, 4, 2, 8, 48, lora=LoRAConfig(2, 4.0, ("q", "v"))),
        generators={
            "image_out": DiffusionConfig(
                UNetConfig(
                    widths=(8, 64), blocks=1, layers=(1, 0), num_heads=(2, 2), context_width=16, groups=4, sample_size=4
                ),
                AutoencoderConfig(widths=(8, 8), blocks=1, groups=4),
            )
        },
        output_projectors={
            "image_out": QueriesOutputConfig(
                32, 16, 2, inner_width=16, num_heads=2, mlp_width=24, encoder_layers=1, decoder_layers=1
            )
        },
        signal_tokens={"image_out": SIGNAL},
        generator_encoders={"image_out": TextEncoderConfig(32, 16, 1, 2, 24, 2)},
    )
)
STAGE = StageConfig(
    name="all",
    steps=1,
    batch_size=8,
    trainable=(
        ("backbone/.*/lora_[ab]", "train"),
        ("output_projectors/.*", "train"),
        ("generators/.*/denoiser/.*", "train"),
    ),
)


def example():
    random = np.random.default_rng(0)
    tokens = random.integers(0, 60, (8, 12)).astype(np.int32)
    tokens[:, 8:10] = SIGNAL
    tokens[3, 8:10] = 1
    whole = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape).copy()
    text = TextStream(tokens, positions, whole, loss_weights=(np.arange(12) > 5) * whole.astype(np.float32))
    targets = {
        "media": random.uniform(-1, 1, (8, 1, 8, 8, 3)).astype(np.float32),
        "captions": random.integers(0, 32, (8, 1, 2)).astype(np.int32),
        "weights": np.ones((8, 1), np.float32),
    }
    return Batch({"text": text}, {}, targets={"image_out": targets})


def step_on(axes):
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[: 8 if axes else 1])
    places = shardings(flatten(MODEL.param_axes()), mesh)
    random = np.random.default_rng(1)
    params = {
        path: jnp.asarray(path.endswith("/scale") + random.normal(0, 0.2, leaf.shape), jnp.float32)
        for path, leaf in flatten(MODEL.param_shapes()).items()
    }
    trainable, frozen = split(unflatten(params), STAGE)
    # Plain gradient descent with rate 1 moves each parameter by its gradient: updates compare gradients.
    optimizer = optax.sgd(1.0)
    layout = state_shardings(trainable, optimizer, places)
    state = init_state(trainable, optimizer, layout)
    frozen = {path: jax.device_put(leaf, places[path]) for path, leaf in frozen.items()}
    loss = SignalLoss(diffusion=2.0, alignment=0.5, drop=0.3)
    step = make_train_step(MODEL, STAGE, optimizer, mesh, layout, loss)
    check_rows(example(), STAGE, batch_shards(mesh))
    state, metrics = step(state, frozen, put_batch(example(), mesh))
    return trainable, jax.device_get(state.trainable), jax.device_get(metrics)


@pytest.mark.slow
def test_a_mesh_gives_the_loss_and_every_gradient_of_one_device():
    before, alone, wanted = step_on({})
    _, shared, found = step_on({"data": 2, "fsdp": 2, "tensor": 2})
    axes = flatten(MODEL.param_axes())
    wide = "generators/image_out/denoiser/down_1_0/conv_1/kernel"
    assert axes[wide][-1] == "embed" and axes["generators/image_out/denoiser/conv_in/kernel"][-1] is None
    for name in ("loss", "grad_norm", "diffusion", "alignment"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name
    assert {path.split("/")[0] for path in before} == {"backbone", "output_projectors", "generators"}
    for part in ("backbone", "output_projectors", "generators"):
        moved = [np.abs(leaf - before[path]).max() for path, leaf in alone.items() if path.startswith(part)]
        assert max(moved) > 1e-3, part
    for path, leaf in alone.items():
        np.testing.assert_allclose(shared[path], leaf, rtol=2e-3, atol=2e-5, err_msg=path)
