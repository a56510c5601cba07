"""Media that a model writes as embeddings, each of them read before the next is said (Sun et al., 2023, "Emu")."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mmjax.config import check_choice
from mmjax.data.contracts import Batch
from mmjax.generators.next_embedding import NextEmbeddingConfig
from mmjax.infer.cache import empty_cache, is_unstacked
from mmjax.infer.generate import check_room, prompt_stream
from mmjax.model import MultimodalLM
from mmjax.nn.masks import attention_mask
from mmjax.signals import condition


class EmbeddingPrograms:
    """The compiled program that writes one item a row behind its prompt.

    Args:
        model: with a `next_embedding` generator at `port`.
        port: of the generator.
    """

    def __init__(self, model: MultimodalLM, port: str = "image_out"):
        written = [name for name, c in model.config.generators.items() if isinstance(c, NextEmbeddingConfig)]
        check_choice("port", port, tuple(written))
        self.model, self.port = model, port
        self.count = model.config.num_tokens(model.config.generators[port].of)
        self._run = jax.jit(functools.partial(_written, model, port, self.count))

    def __call__(self, params: dict[str, Any], batch: Batch) -> np.ndarray:
        """float32 [B, N, D]: the N embeddings of one item behind every prompt, which ends with the signal's token.

        A denoiser whose condition they are makes pixels of them; put back into `Media` of stage "projected", they are
        read like those of an item that was shown.

        Args:
            params: the model's, stacked or unstacked.
            batch: prompts [B, T] padded on any side, and their media.

        Raises:
            ValueError: media that are read inside the backbone; a prompt that leaves no room.
        """
        text = prompt_stream(batch)
        if text.media_attention is not None:
            raise ValueError("embeddings are not written by models that read media inside the backbone")
        longest = int(np.asarray(text.positions).max()) + 1
        check_room(longest, self.count, self.model.config.backbone.max_positions, "the longest prompt")
        return np.asarray(self._run(params, batch))


def _written(model: MultimodalLM, port: str, count: int, params: dict[str, Any], batch: Batch) -> jax.Array:
    text = batch.text
    media = model.encode_media(params, batch.media)
    rows, length = text.tokens.shape
    valid, positions = jnp.asarray(text.segment_ids) > 0, jnp.asarray(text.positions)
    config = model.config.backbone
    cache = empty_cache(config, rows, length + count, jnp.dtype(model.dtype), not is_unstacked(params))
    embeddings = model.embed(params, text, media, batch.media_owner)
    where = attention_mask(text), cache, 0, None, model.is_media(text)
    hidden, cache = model.step(params, embeddings, positions, *where)
    last = jnp.max(jnp.where(valid, jnp.arange(length), 0), axis=1)
    flat = positions if positions.ndim == 2 else positions.max(axis=-1)
    first = jnp.max(jnp.where(valid, flat, -1), axis=1) + 1

    def say(hidden: jax.Array) -> jax.Array:
        """Hidden states [B, D] -> the embeddings that they say come next, [B, 1, D]."""
        return condition(model, params, port, hidden[:, None, None]).sequence

    def body(number: jax.Array, held: Any) -> Any:
        out, said, cache = held
        out = lax.dynamic_update_slice_in_dim(out, said.astype(jnp.float32), number, axis=1)
        place = (first + number)[:, None]
        place = place if positions.ndim == 2 else jnp.repeat(place[..., None], positions.shape[2], axis=2)
        new = jnp.broadcast_to(jnp.arange(count) <= number, (rows, count))
        mask = jnp.concatenate([valid, new], axis=1)[:, None]
        hidden, cache = model.step(params, said.astype(embeddings.dtype), place, mask, cache, length + number)
        return out, say(hidden[:, 0]), cache

    said = say(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])
    out = jnp.zeros((rows, count, said.shape[-1]), jnp.float32)
    return lax.fori_loop(0, count, body, (out, said, cache))[0]
