"""The losses of decoupled pretraining: a P-Former learns prompts from captions, then a projector learns them from it.

Jian et al., 2023, "Bootstrapping Vision-Language Learning with Decoupled Language Pre-training".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.projectors.prompted import PromptedConfig
from mmjax.train.losses import next_token_loss, text_loss


@dataclasses.dataclass(frozen=True)
class PromptLoss:
    """The loss of a model with a `PromptedConfig`; a caption is what of a row has a weight as a target.

    Without `align`, the P-Former's own: the LLM is to write the caption behind the P-Former's prompt alone. Media of
    a batch are left out of its texts and are not looked at, so captions with and without images train alike. With
    `align`, the LLM is to write the caption behind the media, and every item's tokens are drawn to the prompt, which
    has no gradient.

    Attributes:
        text: weight of the next-token loss.
        contrast: of telling captions apart by their vectors, see `contrast_mean`.
        vocabulary: of the mean squared difference between a prompt's tokens and the nearest of the LLM's embeddings.
        align: of the mean squared difference between a projector's tokens and the prompt.
        hidden: share of the words that the P-Former does not see; of none without an `rng` (evaluation).
        smoothing: how much of the contrast's answer is spread over all captions.
    """

    text: float = 1.0
    contrast: float = 1.0
    vocabulary: float = 1.0
    align: float = 0.0
    hidden: float = 0.25
    smoothing: float = 0.1

    def __post_init__(self):
        for name in ("hidden", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"loss_weights.{name} is a share, at least 0 and below 1; got {getattr(self, name)}"
                )

    def __call__(
        self, model: Any, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(sum, aux) as `mmjax.train.losses` has it; aux has also, times "weight", every mean by its name."""
        port, text = prompted_port(model.config), batch.text
        tokens, seen = captions(text, model.config.projectors[port].prompter.max_positions)
        known = jnp.any(seen, axis=1)
        if batch.media_owner is not None:
            raise ValueError("prompts: rows that share their media have several captions for one item")
        if self.align:
            media = model.encode_media(params, batch.media, rng)
            batch = batch.replace(media=media)
            total, aux = next_token_loss(model, params, batch, rng)
            prompts = jax.lax.stop_gradient(prompts_of(model, params, port, tokens, seen)[0])
            means = {"align": align_mean(media[port], prompts, known)} if port in media else {}
        else:
            hidden = None if rng is None else seen & jax.random.bernoulli(rng, self.hidden, seen.shape)
            prompts, vectors, temperature = prompts_of(model, params, port, tokens, seen, hidden)
            behind = prompted_text(text, prompts.shape[1])
            states = model.forward(params, {"text": behind}, {port: Media(prompts, stage="projected")})
            total, aux = text_loss(model, params, behind, states)
            means = {
                "contrast": contrast_mean(vectors, temperature, known, self.smoothing),
                "vocabulary": vocabulary_mean(prompts, embeddings_of(model, params), known),
            }
        total = self.text * total
        for name, mean in means.items():
            aux[name] = mean * aux["weight"]
            total = total + getattr(self, name) * aux[name]
        return total, aux


def prompted_port(config: Any) -> str | None:
    """The port with a P-Former; None without.

    Raises:
        ConfigError: there are several; or the LLM does not write one stream of text.
    """
    ports = [port for port, projector in config.projectors.items() if isinstance(projector, PromptedConfig)]
    if len(ports) > 1:
        raise ConfigError(f"projectors {', '.join(map(repr, ports))} are all prompted; one can be")
    if ports and (config.streams != ("text",) or ports[0] in config.inside):
        raise ConfigError(f"projectors.{ports[0]} is prompted, but its tokens do not stand in the text that is written")
    return ports[0] if ports else None


def prompts_of(model, params, port, tokens, seen, hidden=None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the P-Former of a port makes of captions, see `Prompter`."""
    variables = {"params": params["projectors"][port]}
    return model.projector(port).apply(variables, tokens, seen, hidden, method="prompts")


def captions(text: TextStream, longest: int) -> tuple[jax.Array, jax.Array]:
    """The first `longest` targets of every row: tokens int [B, T'], and bool [B, T'], False is padding."""
    order, target = _targets(text)
    order, target = order[:, :longest], target[:, :longest]
    return jnp.take_along_axis(jnp.asarray(text.tokens), order, axis=1), target


def _targets(text: TextStream) -> tuple[jax.Array, jax.Array]:
    """Places of a text, targets first: int [B, T], and bool [B, T], which of those are targets.

    One that stands first in its row is among them: behind a prompt it can be said.
    """
    target = jnp.asarray(text.segment_ids) > 0
    if text.loss_weights is not None:
        target &= jnp.asarray(text.loss_weights) > 0
    if text.media_index is not None:
        target &= jnp.asarray(text.media_index) < 0
    order = jnp.argsort(~target, axis=1, stable=True)
    return order, jnp.take_along_axis(target, order, axis=1)


def prompted_text(text: TextStream, count: int) -> TextStream:
    """A text without its media, behind the `count` tokens of a prompt, which are its media.

    Raises:
        ValueError: a text with parts that do not see each other.
    """
    if text.attend_group is not None:
        raise ValueError("a text with several groups has no single caption that a prompt could stand before")
    tokens, segments = jnp.asarray(text.tokens), jnp.asarray(text.segment_ids)
    kept = segments > 0
    if text.media_index is not None:
        kept &= jnp.asarray(text.media_index) < 0
    front = lambda values, value: jnp.pad(values, ((0, 0), (count, 0)), constant_values=value)
    places = jnp.where(kept, count - 1 + jnp.cumsum(kept, axis=1), 0)
    prompt = jnp.broadcast_to(jnp.arange(count), (len(tokens), count))
    positions = jnp.concatenate([prompt, places], axis=1).astype(jnp.int32)
    if jnp.ndim(text.positions) == 3:
        positions = jnp.broadcast_to(positions[..., None], (*positions.shape, text.positions.shape[-1]))
    numbers = front(jnp.where(kept, 1, 0), 0).at[:, :count].set(jnp.any(kept, axis=1)[:, None])
    weights = jnp.ones(tokens.shape, jnp.float32) if text.loss_weights is None else jnp.asarray(text.loss_weights)
    at = None
    if text.loss_positions is not None:
        order, target = (values[:, : text.loss_positions.shape[1] + 1] for values in _targets(text))
        at = jnp.where(target, order + count, -1).astype(jnp.int32)
    return TextStream(
        tokens=front(jnp.where(kept, tokens, 0), 0),
        positions=positions,
        segment_ids=numbers.astype(jnp.int32),
        loss_weights=front(jnp.where(kept, weights, 0.0), 0.0),
        media_index=jnp.concatenate([prompt, jnp.full(tokens.shape, -1)], axis=1).astype(jnp.int32),
        loss_positions=at,
    )


def contrast_mean(vectors: jax.Array, temperature: jax.Array, known: jax.Array, smoothing: float) -> jax.Array:
    """Mean cross-entropy of finding a caption among all of the batch by its own vector.

    Args:
        vectors: float32 [B, C] of length 1.
        temperature: what their products are divided by.
        known: bool [B], which rows have a caption.
        smoothing: share of the answer that is all captions alike (Szegedy et al., 2016).
    """
    logits = jnp.where(known[None], vectors @ vectors.T / temperature, -jnp.inf)
    log_p = logits - jax.nn.logsumexp(jnp.where(known.any(), logits, 0.0), axis=1, keepdims=True)
    count = jnp.maximum(jnp.sum(known), 1)
    pair = known[:, None] & known[None]
    # Of what is padding the logarithm is infinite; it must not meet a zero.
    log_p = jnp.where(pair, log_p, 0.0)
    loss = -(1 - smoothing) * jnp.diagonal(log_p) - smoothing * jnp.sum(log_p, axis=1) / count
    return jnp.sum(jnp.where(known, loss, 0.0)) / count


def embeddings_of(model: Any, params: Any) -> jax.Array:
    """The LLM's embeddings [V, D]; without a gradient."""
    return jax.lax.stop_gradient(model.token_embeddings(params, jnp.arange(model.config.backbone.vocab_size)))


def vocabulary_mean(prompts: jax.Array, table: jax.Array, known: jax.Array) -> jax.Array:
    """Mean squared difference between the tokens of prompts [B, Q, D] and the nearest row of a table [V, D] each."""
    prompts, table = prompts.astype(jnp.float32), table.astype(jnp.float32)
    # The prompt's own square is the same for every row.
    distances = jnp.sum(jnp.square(table), axis=1) - 2 * jnp.einsum("bqd,vd->bqv", prompts, table)
    nearest = table[jnp.argmin(distances, axis=-1)]
    return _mean(jnp.square(prompts - nearest), known)


def align_mean(media: Media, prompts: jax.Array, known: jax.Array) -> jax.Array:
    """Mean squared difference between projected items [B, I * Q, D] and the prompt [B, Q, D] of their row."""
    batch, count, width = prompts.shape
    items = media.values.reshape(batch, -1, count, width).astype(jnp.float32)
    real = jnp.ones(items.shape[:2], bool)
    if media.segment_ids is not None:
        real = jnp.any(jnp.asarray(media.segment_ids).reshape(batch, -1, count) > 0, axis=2)
    error = jnp.square(items - prompts[:, None].astype(jnp.float32))
    return _mean(error.reshape(-1, count, width), (real & known[:, None]).reshape(-1))


def _mean(error: jax.Array, known: jax.Array) -> jax.Array:
    """Of [B, Q, D], over the rows that count."""
    rows = jnp.mean(error, axis=(1, 2))
    return jnp.sum(jnp.where(known, rows, 0.0)) / jnp.maximum(jnp.sum(known), 1)
