"""The next-token loss, as a sum and a weight, so that any split of a batch gives the same number.

A loss here is `(model, params, batch, rng) -> (sum, aux)` with `aux["weight"]` what to divide by; the step
adds both up over the global batch and over the micro-batches before it divides.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.data.contracts import Batch, TextStream
from mmjax.nn.moe import load_balancing_loss, router_load


def target_weights(text: TextStream) -> jax.Array:
    """float32 [B, T]: the weight of each token as a target.

    `loss_weights` (1 where there are none), set to 0 where the token is padding or where the token before it
    cannot see it follow: the first of a row, of a packed segment, or of an attend group behind another group.
    """
    segment = jnp.asarray(text.segment_ids)
    if text.loss_weights is None:
        weights = jnp.ones(segment.shape, jnp.float32)
    else:
        weights = jnp.asarray(text.loss_weights, jnp.float32)
    follows = (segment[:, 1:] > 0) & (segment[:, 1:] == segment[:, :-1])
    if text.attend_group is not None:
        group = jnp.asarray(text.attend_group)
        follows &= (group[:, 1:] == group[:, :-1]) | (group[:, :-1] == 0)
    return weights * jnp.pad(follows, ((0, 0), (1, 0)))


def next_token_loss(
    model: Any,
    params: Any,
    batch: Batch,
    rng: jax.Array | None = None,
    stream: str | None = None,
    router_weight: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of -log p(token t | what stands before t), in float32.

    Token t is predicted from the hidden state at t - 1 of its row, transformers' `labels` convention. With
    `loss_positions` [B, M], logits [B, M, V] are computed there alone; else at all T - 1 places.

    Args:
        model: a MultimodalLM.
        params: its params, blocks stacked.
        batch: what flows in; `batch.texts[stream]` is the stream that is predicted.
        rng: for whatever the model draws, or None.
        stream: name of the stream; "decoder" where the batch has one, else "text".
        router_weight: see `StageConfig`.

    Returns:
        The sum (float32 scalar), and scalars "weight" (divide by it), "correct" (weight of the targets that
        greedy decoding gets right) and "targets" (how many have a weight). With `router_weight`, "router_loss" and
        "router_load", see `router_terms`, times the weight, and router_weight times the first is in the sum: divided
        by the weight, the loss is that of Mixtral in transformers.

    Raises:
        ConfigError: router_weight for a model without experts.
    """
    batch = model.with_codes(params, batch)
    media = model.encode_media(params, batch.media, rng)
    routers = None
    if router_weight is None:
        hidden = model.forward(params, batch.texts, media, batch.media_owner)
    else:
        hidden, routers = model.forward(params, batch.texts, media, batch.media_owner, router_logits=True)
    text = batch.texts[stream or ("decoder" if "decoder" in batch.texts else "text")]
    total, aux = text_loss(model, params, text, hidden)
    if routers is not None:
        terms = router_terms(routers, model.config.backbone.router_top_k, jnp.asarray(text.segment_ids) > 0)
        aux |= {name: term * aux["weight"] for name, term in terms.items()}
        total += router_weight * aux["router_loss"]
    return total, aux


def router_terms(logits: jax.Array, top_k: int, mask: jax.Array) -> dict[str, jax.Array]:
    """How alike a batch uses the experts.

    Args:
        logits: float32 [L, B, T, E], of the routers of all layers.
        top_k: how many experts a token goes to.
        mask: bool [B, T], which tokens are no padding.

    Returns:
        float32 scalars: "router_loss", see `load_balancing_loss`, and "router_load", tokens of a layer's busiest
        expert over those of its average one, the mean of all layers: 1 where experts are used alike.
    """
    load = jax.vmap(lambda layer: router_load(layer, top_k, mask))(logits)
    return {
        "router_loss": load_balancing_loss(logits, top_k, mask),
        "router_load": jnp.mean(load.max(axis=-1)) * logits.shape[-1] / top_k,
    }


def target_states(text: TextStream, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where something is to be said: the states it is said from [B, M, D], the tokens int [B, M], their weights.

    With `loss_positions` [B, M] these places alone, whose padding weighs 0; else all T - 1.
    """
    tokens, weights = jnp.asarray(text.tokens), target_weights(text)
    if text.loss_positions is None:
        return hidden[:, :-1], tokens[:, 1:], weights[:, 1:]
    places = jnp.asarray(text.loss_positions)
    real, at = places > 0, jnp.maximum(places, 0)
    weights = jnp.where(real, jnp.take_along_axis(weights, at, axis=1), 0.0)
    hidden = jnp.take_along_axis(hidden, jnp.maximum(at - 1, 0)[:, :, None], axis=1)
    return hidden, jnp.take_along_axis(tokens, at, axis=1), weights


def text_loss(
    model: Any, params: Any, text: TextStream, hidden: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum and the scalars of `next_token_loss`, of hidden states [B, T, D] that are there already."""
    hidden, targets, weights = target_states(text, hidden)
    loss, correct = token_losses(model, params, hidden, targets)
    # A hidden state of padding may hold anything; its loss must not reach the sum, not even times zero.
    used = weights != 0
    total = jnp.sum(jnp.where(used, loss * weights, 0.0))
    aux = {
        "weight": jnp.sum(weights),
        "correct": jnp.sum(jnp.where(correct, weights, 0.0)),
        "targets": jnp.sum(used, dtype=jnp.int32),
    }
    return total, aux


def token_losses(
    model: Any, params: Any, hidden: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`cross_entropy` of the tokens that hidden states [..., D] are to say, int [...].

    Codes of images with an output layer of their own are chosen among codes, words among words (Wu et al., 2024,
    "Janus").
    """
    codes = model.config.codes
    if codes is None or not codes.own:
        return cross_entropy(model.logits(params, hidden), targets)
    is_code = targets >= codes.first
    words = cross_entropy(model.logits(params, hidden), jnp.where(is_code, 0, targets))
    drawn = cross_entropy(model.codes(params, "logits", hidden), jnp.where(is_code, targets - codes.first, 0))
    return jax.tree.map(lambda code, word: jnp.where(is_code, code, word), drawn, words)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log softmax(logits)[target] float32 [...], and whether the target is the argmax, of logits [..., V].

    The target's logit is picked by a masked sum, not a gather, so that logits may be sharded over V.
    """
    logits = logits.astype(jnp.float32)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    picked = jnp.sum(jnp.where(classes == targets[..., None], logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked, jnp.argmax(logits, axis=-1) == targets
