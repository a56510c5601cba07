"""The next-token loss and its gradients, against transformers' Llama with `labels` and torch's autograd."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.contracts import Batch, TextStream
from mmjax.interop.huggingface.llama import table
from mmjax.interop.table import export_params
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.train.losses import cross_entropy, next_token_loss, target_weights

SIZES = dict(vocab_size=53, width=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=37)


def small_model(**changes):
    return MultimodalLM(MultimodalLMConfig(DecoderConfig(**{**SIZES, **changes})))


def random_params(model, seed=0):
    """Params of the size that `init` gives, drawn by numpy: compiling the initialiser takes longer than a test."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + 0.2 * rng.normal(size=shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, model.param_shapes())


def torch_names(params):
    """Our params (or gradients) as transformers' Llama names and lays them out."""
    return dict(export_params(table(MultimodalLMConfig(DecoderConfig(**SIZES))), params))


def torch_llama(params):
    """transformers' LlamaForCausalLM with the weights of `small_model()`."""
    config = transformers.LlamaConfig(
        vocab_size=SIZES["vocab_size"],
        hidden_size=SIZES["width"],
        num_hidden_layers=SIZES["num_layers"],
        num_attention_heads=SIZES["num_heads"],
        num_key_value_heads=SIZES["num_kv_heads"],
        head_dim=SIZES["head_dim"],
        intermediate_size=SIZES["mlp_width"],
        attn_implementation="eager",
    )
    reference = transformers.LlamaForCausalLM(config).float()
    reference.load_state_dict({name: torch.tensor(value) for name, value in torch_names(params).items()})
    return reference


def stream(tokens, weights=None, segments=None, **more):
    tokens = np.asarray(tokens, np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    segments = np.ones_like(tokens) if segments is None else np.asarray(segments, np.int32)
    return TextStream(tokens, positions, segments, weights, **more)


def rows(seed, batch=3, length=11):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SIZES["vocab_size"], (batch, length)).astype(np.int32)
    weights = (rng.random((batch, length)) < 0.5).astype(np.float32)
    weights[:, 0], weights[0, -1] = 0, 1
    return tokens, weights


def positions_of(weights, extra=2):
    """Where the weights are not zero, padded with -1 to the longest row and a little more."""
    where = [np.flatnonzero(row) for row in weights]
    out = np.full((len(where), max(map(len, where)) + extra), -1, np.int32)
    for row, at in enumerate(where):
        out[row, : len(at)] = at
    return out


@pytest.mark.parametrize("gathered", [False, True])
def test_loss_and_every_gradient_equal_transformers(gathered):
    model = small_model()
    params = random_params(model)
    tokens, weights = rows(1)
    text = stream(tokens, weights, loss_positions=positions_of(weights) if gathered else None)

    def mean(params):
        total, aux = next_token_loss(model, params, Batch({"text": text}))
        return total / aux["weight"], aux

    (value, aux), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    reference = torch_llama(params)
    labels = torch.tensor(np.where(weights > 0, tokens, -100), dtype=torch.long)
    output = reference(input_ids=torch.tensor(tokens, dtype=torch.long), labels=labels)
    output.loss.backward()
    assert float(value) == pytest.approx(output.loss.item(), rel=1e-5)
    right = (output.logits.argmax(-1)[:, :-1] == labels[:, 1:]).sum()
    assert (int(aux["weight"]), int(aux["targets"])) == (int(weights.sum()),) * 2
    assert int(aux["correct"]) == int(right)
    for name, ours in torch_names(grads).items():
        theirs = reference.get_parameter(name).grad.numpy()
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), name


def test_fractional_weights_equal_the_closed_form():
    model = small_model(tie_embeddings=True)
    params = random_params(model, 3)
    tokens, weights = rows(2)
    weights = weights * np.random.default_rng(5).random(weights.shape).astype(np.float32)
    text = stream(tokens, weights, loss_positions=positions_of(weights))
    total, aux = jax.jit(lambda batch: next_token_loss(model, params, batch))(Batch({"text": text}))
    logits = np.asarray(jax.jit(lambda batch: model(params, batch))(Batch({"text": text})).logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = sum(
        -weights[b, t] * log_p[b, t - 1, tokens[b, t]] for b in range(len(tokens)) for t in range(1, tokens.shape[1])
    )
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(aux["weight"]) == pytest.approx(weights.sum(), rel=1e-6)


def test_no_loss_where_the_token_before_does_not_lead_there():
    segments = [[1, 1, 2, 2, 2, 0], [0, 1, 1, 1, 1, 1]]
    group = [[0, 0, 0, 1, 2, 0], [0, 0, 1, 1, 2, 2]]
    text = stream(np.zeros((2, 6)), None, segments, attend_group=np.asarray(group, np.int32))
    expected = [[0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 0, 1]]
    np.testing.assert_array_equal(target_weights(text), expected)


def test_packed_rows_equal_rows_apart():
    model = small_model()
    params = random_params(model)
    (a, b), weights = rows(4, 2, 6)[0], rows(4, 2, 6)[1]
    apart = Batch({"text": stream([a, b], weights)})
    positions = np.concatenate([np.arange(6), np.arange(6)])[None].astype(np.int32)
    packed = stream([np.concatenate([a, b])], weights.reshape(1, -1), np.repeat([[1, 2]], 6, axis=1))
    packed = Batch({"text": packed.replace(positions=positions)})
    run = jax.jit(lambda batch: next_token_loss(model, params, batch))
    first, second = run(apart), run(packed)
    assert float(first[0]) == pytest.approx(float(second[0]), rel=1e-5)
    assert float(first[1]["weight"]) == float(second[1]["weight"])


def test_what_has_no_weight_may_be_infinite():
    class Broken:
        config = types.SimpleNamespace(codes=None)

        def with_codes(self, params, batch):
            return batch

        def encode_media(self, params, media, rng):
            return {}

        def forward(self, params, texts, media, owner):
            return params * jnp.ones((1, 4, 3))

        def logits(self, params, hidden):
            return jnp.where(jnp.arange(3)[None, :, None] == 1, jnp.inf, hidden)

    text = stream([[0, 1, 2, 1]], np.float32([[0, 1, 0, 1]]))
    total, _ = next_token_loss(Broken(), jnp.float32(0.5), Batch({"text": text}))
    assert float(total) == pytest.approx(2 * np.log(3), rel=1e-6)


def test_cross_entropy_is_float32_for_bfloat16_logits():
    logits = jax.random.normal(jax.random.key(0), (5, 17), jnp.bfloat16) * 30
    targets = jnp.arange(5)
    ours, _ = cross_entropy(logits, targets)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits, np.float32)), torch.arange(5), reduction="none"
    )
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
