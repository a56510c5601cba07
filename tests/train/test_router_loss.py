"""The balancing loss of routers as a term of the loss: transformers' Mixtral, micro-batches, and what it does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.distributed.rules import shardings
from mmjax.interop.huggingface import load
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.moe import MixtureConfig
from mmjax.paths import flatten
from mmjax.train.losses import next_token_loss
from mmjax.train.metrics import status
from mmjax.train.optimizer import make_optimizer
from mmjax.train.stage import StageConfig, multipliers, split
from mmjax.train.step import init_state, make_train_step, state_shardings

MODEL = MultimodalLM(
    MultimodalLMConfig(DecoderConfig(29, 12, 2, 3, 3, 4, 1, moe=MixtureConfig(4, 1, 10, routing="dense")))
)


def batch_of(tokens, lengths):
    """Rows padded on the right; every token behind the first two is a target."""
    segments = (np.arange(tokens.shape[1]) < np.array(lengths)[:, None]).astype(np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    weights = (segments * (positions > 1)).astype(np.float32)
    return Batch({"text": TextStream(tokens.astype(np.int32), positions, segments, weights)})


def stage_of(**options):
    options = {"router_weight": 0.0, "learning_rate": 0.03, "batch_size": 4, **options}
    return StageConfig("s", 30, trainable=(("backbone/.*", "train"),), schedule="constant", **options)


def test_the_loss_of_mixtral(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=6)
    config = transformers.MixtralConfig(
        vocab_size=47, num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2, **sizes
    )
    theirs = transformers.MixtralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    model = MultimodalLM(loaded.config)
    tokens = np.random.default_rng(0).integers(0, 47, (3, 9))
    batch = batch_of(tokens, [9, 4, 7])
    weights = batch.text.loss_weights
    labels = torch.tensor(np.where(weights > 0, tokens, -100))
    mask = torch.tensor(batch.text.segment_ids)
    coefficients = (0.02, 0.7)
    losses = jax.jit(
        lambda params: [next_token_loss(model, params, batch, router_weight=weight) for weight in (*coefficients, None)]
    )(loaded.params)
    for coefficient, (total, aux) in zip(coefficients, losses, strict=False):
        theirs.config.router_aux_loss_coef = theirs.router_aux_loss_coef = coefficient
        out = theirs(torch.tensor(tokens), attention_mask=mask, labels=labels, output_router_logits=True)
        np.testing.assert_allclose(total / aux["weight"], out.loss.item(), rtol=1e-5)
        np.testing.assert_allclose(aux["router_loss"] / aux["weight"], out.aux_loss.item(), rtol=1e-5)
        assert 1 < aux["router_load"] / aux["weight"] < 5 / 2
    plain, aux = losses[-1]
    assert set(aux) == {"weight", "correct", "targets"}
    np.testing.assert_allclose(plain / aux["weight"], (out.loss - coefficient * out.aux_loss).item(), rtol=1e-5)


@functools.cache
def biased_params():
    """Weights whose routers send nearly all tokens to one expert."""
    params = jax.jit(MODEL.init)(jax.random.key(0))
    router = params["backbone"]["blocks"]["mlp"]["router"]
    # What all tokens share is read by the first expert: norms' scales and a direction of the embeddings.
    router["kernel"] = router["kernel"] * 0.1 + jnp.zeros((12, 4)).at[0, 0].set(2.0)
    params["backbone"]["embed"]["embedding"] = params["backbone"]["embed"]["embedding"].at[:, 0].add(0.2)
    return params


def trained(stage, batch, steps):
    """Metrics of every step from `biased_params`."""
    mesh, params = make_mesh(MeshConfig(), jax.devices()[:1]), biased_params()
    axes = flatten(MODEL.param_axes())
    trainable, frozen = split(params, stage)
    optimizer = make_optimizer(stage, multipliers(params, stage), axes)
    layout = state_shardings(trainable, optimizer, shardings(axes, mesh))
    state = init_state(trainable, optimizer, layout)
    step = make_train_step(MODEL, stage, optimizer, mesh, layout)
    seen = []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    return seen


@pytest.fixture(scope="module")
def batch():
    return batch_of(np.random.default_rng(1).integers(0, 29, (4, 16)), [16, 16, 12, 16])


def test_training_with_it_evens_the_load(batch):
    watched = trained(stage_of(), batch, 6)
    balanced = trained(stage_of(router_weight=1.0), batch, 6)
    assert watched[0]["router_load"] == balanced[0]["router_load"] > 3
    assert balanced[0]["loss"] == pytest.approx(watched[0]["loss"] + balanced[0]["router_loss"], rel=1e-5)
    assert balanced[-1]["router_load"] < 2 < watched[-1]["router_load"]
    assert balanced[-1]["router_loss"] < min(balanced[0]["router_loss"], watched[-1]["router_loss"])
    assert "load 3." in status(watched[0])


@pytest.mark.slow
def test_micro_batches_take_the_mean_of_theirs(batch):
    """Each micro-batch has a balance of its own, weighted as its targets are."""
    parts = trained(stage_of(router_weight=0.5, accumulate=2), batch, 1)[0]
    rows = lambda part: jax.tree.map(lambda leaf: leaf[part], batch)
    halves = [trained(stage_of(router_weight=0.5), rows(part), 1)[0] for part in (slice(2), slice(2, 4))]
    for name in ("loss", "router_loss", "router_load"):
        mean = sum(half[name] * half["weight"] for half in halves) / sum(half["weight"] for half in halves)
        assert parts[name] == pytest.approx(mean, rel=1e-5), name


def test_what_cannot_be(batch):
    plain = MultimodalLM(MultimodalLMConfig(dataclasses.replace(MODEL.config.backbone, moe=None)))
    with pytest.raises(ConfigError, match="router_logits: backbone.moe is None"):
        next_token_loss(plain, plain.param_shapes(), batch, router_weight=0.1)
    with pytest.raises(ConfigError, match="stage 's'.router_weight must not be negative"):
        stage_of(router_weight=-1.0)
