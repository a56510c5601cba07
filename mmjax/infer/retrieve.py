"""Finding what a model signals in a gallery of images (Koh et al., 2023, "FROMAGe")."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.generators.decision import RETRIEVE, DecisionConfig
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.generators.retrieval import RetrievalConfig
from mmjax.model import MultimodalLM
from mmjax.signals import decide, retrieval_items, retrieval_queries


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images to be found.

    Attributes:
        embeddings: float32 [G, width] of length 1, see `make_gallery`.
        names: of the images, such as their paths; () for images that are known by their number.
    """

    embeddings: Any
    names: tuple[str, ...] = ()


class Retrieved(NamedTuple):
    """What was found for a signal, the best first.

    Attributes:
        signal: its number among the signals of its row, those that were drawn counted too.
        indices: int32 [k], rows of the gallery.
        scores: float32 [k], cosines.
        names: of the images, where the gallery has names.
    """

    signal: int
    indices: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...] = ()


def make_gallery(
    model: MultimodalLM,
    params: dict[str, Any],
    port: str,
    items: Iterable[np.ndarray],
    names: Sequence[str] = (),
    batch_size: int = 64,
) -> Gallery:
    """A gallery of images, embedded by one compiled program, batch after batch.

    Args:
        model, params: with retrieval at the port.
        port: of the retrieval.
        items: images [H, W, 3] as the generator's own encoder takes them (`RetrievalTargets.recipe`), or their features
            [C]. Only a batch of them is in memory at once: any iterable will do.
        names: of the images; read when all of them are.
        batch_size: the last batch is filled up.

    Raises:
        ValueError: no images; names of another number; a port that retrieves nothing.
    """
    if port not in retrieval_ports(model):
        raise ValueError(f"port {port!r} retrieves nothing; ports that do: {list(retrieval_ports(model))}")
    embed = jax.jit(lambda params, batch: retrieval_items(model, params, port, batch))
    found, rest = [], iter(items)
    while some := [np.asarray(item, np.float32) for item in itertools.islice(rest, batch_size)]:
        batch = np.stack(some)
        padded = np.pad(batch, [(0, batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1))
        found.append(np.asarray(embed(params, padded))[: len(batch)])
    count = sum(map(len, found))
    if count == 0 or (len(names) and len(names) != count):
        raise ValueError(f"a gallery of {count} images with {len(names)} names")
    return Gallery(np.concatenate(found), tuple(names))


def rank(
    model: MultimodalLM, params: dict[str, Any], port: str, states: jax.Array, gallery: Gallery, k: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The k best of a gallery for each signal; a pure function.

    Args:
        model, params: with retrieval at the port.
        port: of the retrieval.
        states: [B, R, K, D], from `signal_states`.
        gallery: of the same model.
        k: how many.

    Returns:
        int32 [B, R, k], rows of the gallery, the best first; float32 [B, R, k], their cosines.

    Raises:
        ValueError: fewer than k images.
    """
    size = len(gallery.embeddings)
    if not 1 <= k <= size:
        raise ValueError(f"the {k} best of a gallery of {size} images")
    scores = retrieval_queries(model, params, port, states) @ jnp.asarray(gallery.embeddings).T
    best, indices = jax.lax.top_k(scores, k)
    return indices, best


def takes(model: MultimodalLM, params: dict[str, Any], port: str, states: jax.Array) -> jax.Array:
    """bool [B, R], which signals [B, R, K, D] a port of decisions says shall be retrieved."""
    return jnp.argmax(decide(model, params, port, states), axis=-1) == RETRIEVE


def retrieval_ports(model: MultimodalLM) -> tuple[str, ...]:
    """The ports that look something up."""
    return tuple(port for port, config in model.config.generators.items() if isinstance(config, RetrievalConfig))


def rivals(model: MultimodalLM, port: str) -> tuple[str | None, tuple[str, ...]]:
    """The port that decides about the signals of a port of retrieval, and the ports that would draw them.

    (None, ()) where nothing is to be decided: either is missing.
    """
    signals, generators = model.config.signal_tokens, model.config.generators
    same = [name for name in generators if tuple(signals[name]) == tuple(signals[port])]
    deciding = [name for name in same if isinstance(generators[name], DecisionConfig)]
    drawing = tuple(name for name in same if isinstance(generators[name], DiffusionConfig))
    return (deciding[0], drawing) if deciding and drawing else (None, ())
