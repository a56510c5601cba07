"""Images that are written as tokens: which tokens a row may write next, and guidance towards what was asked for.

A row is either in its text or at a place of an image, counted from the token that began it:

    begin  c c c (row_end)  c c c (row_end)  ...  tail...

At c stands a code, elsewhere the one token that belongs there; in text there are no codes. The rules are arrays, read
inside the compiled loop, so that neither sizes of images nor ids nor the scale of guidance are compiled in.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.contracts import TextStream
from mmjax.generators.image_codes import ImageCodesConfig

NOWHERE = -1  # the place of a row that is in its text; no token, where one is asked for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ImageRules:
    """How images are written.

    Attributes:
        codes: bool [V], which tokens are codes.
        begin: int32 scalar, the token behind which a row is in an image; NOWHERE: no token begins one.
        row_end: int32 scalar, the token behind each row of codes; NOWHERE: there is none.
        tail: int32 [n], the tokens that end an image.
        grid: int32 [B, 2], or [1, 2] for all rows: (height, width) of images in codes.
        guidance: float32 scalar, see `guided`; 1 is none.
        at_once: bool scalar, whether the first new token is that of an image, whatever stands before it.
    """

    codes: jax.Array
    begin: jax.Array
    row_end: jax.Array
    tail: jax.Array
    grid: jax.Array
    guidance: jax.Array
    at_once: jax.Array


def image_rules(
    config: ImageCodesConfig,
    words: int,
    grid: np.ndarray | tuple[int, int] | None = None,
    guidance: float = 1.0,
    at_once: bool = False,
    begins: bool = True,
) -> ImageRules:
    """The rules of a model.

    Args:
        config: its codes.
        words: V, how many tokens it may write.
        grid: (height, width), or one a row of the batch [B, 2]; the config's unless given.
        guidance: scale; 1 is none.
        at_once: whether every row begins with an image.
        begins: whether a token may begin one.

    Raises:
        ValueError: a grid that is none, or guidance below 1.
    """
    grid = np.asarray(config.grid if grid is None else grid, np.int32).reshape(-1, 2)
    if grid.min() < 1:
        raise ValueError(f"an image's grid is (height, width) in codes, both at least 1; got {grid.min(axis=0)}")
    if not 1 <= guidance < float("inf"):
        raise ValueError(f"guidance_scale must be a number from 1 (none) on, got {guidance}")
    codes = np.zeros(words, bool)
    codes[config.tokens()] = True
    return ImageRules(
        codes=codes,
        begin=np.int32(NOWHERE if config.begin is None or not begins else config.begin),
        row_end=np.int32(NOWHERE if config.row_end is None else config.row_end),
        tail=np.asarray(config.tail, np.int32),
        grid=grid,
        guidance=np.float32(guidance),
        at_once=np.bool_(at_once),
    )


def first_place(rules: ImageRules, text: TextStream) -> jax.Array:
    """Where each row of a prompt [B, T] leaves off, int32 [B]: in an image if all behind its last `begin` is of one."""
    tokens, valid = jnp.asarray(text.tokens), jnp.asarray(text.segment_ids) > 0
    if text.media_index is not None:
        tokens = jnp.where(jnp.asarray(text.media_index) < 0, tokens, NOWHERE)
    # What is padding stands behind nothing.
    number = jnp.where(valid, jnp.cumsum(valid, axis=1), 0)
    begun = jnp.max(jnp.where(valid & (tokens == rules.begin) & (rules.begin >= 0), number, 0), axis=1)
    of_image = rules.codes[jnp.maximum(tokens, 0)] & (tokens >= 0) | (tokens == rules.row_end) & (tokens >= 0)
    behind = valid & (number > begun[:, None])
    place = jnp.max(number, axis=1) - begun
    inside = (begun > 0) & jnp.all(of_image | ~behind, axis=1) & (place < _length(rules))
    return jnp.where(rules.at_once, 0, jnp.where(inside, place, NOWHERE)).astype(jnp.int32)


def advance(rules: ImageRules, place: jax.Array, token: jax.Array) -> jax.Array:
    """The places int32 [B] behind `token` int32 [B], which was written at `place`."""
    after = place + 1
    inside = jnp.where(after < _length(rules), after, NOWHERE)
    outside = jnp.where((token == rules.begin) & (rules.begin >= 0), 0, NOWHERE)
    return jnp.where(place >= 0, inside, outside).astype(jnp.int32)


def required(rules: ImageRules, place: jax.Array) -> jax.Array:
    """The one token int32 [B] that belongs at each place; NOWHERE at a code's, and in text."""
    parted = (rules.row_end >= 0).astype(jnp.int32)
    height, width = rules.grid[:, 0], rules.grid[:, 1]
    behind = place - height * (width + parted)
    ends_row = (parted > 0) & (behind < 0) & (place % (width + parted) == width)
    token = jnp.where(ends_row, rules.row_end, NOWHERE)
    if rules.tail.size:
        ending = rules.tail[jnp.clip(behind, 0, rules.tail.size - 1)]
        token = jnp.where((behind >= 0) & (behind < rules.tail.size), ending, token)
    return jnp.where(place >= 0, token, NOWHERE)


def only_allowed(rules: ImageRules, place: jax.Array, logits: jax.Array) -> jax.Array:
    """Logits [B, V], -inf for codes in text and for all that is no code in an image."""
    return jnp.where(rules.codes == (place >= 0)[:, None], logits, -jnp.inf)


def guided(rules: ImageRules, place: jax.Array, logits: jax.Array) -> jax.Array:
    """Logits [2 B, V] of rows as asked for and then of the same without it -> [B, V] (Ho and Salimans, 2022).

    In images, from the ones away from the others; in text those as asked for.
    """
    asked, without = jnp.split(logits, 2)
    mixed = without + rules.guidance * (asked - without)
    return jnp.where((place >= 0)[:, None], mixed, asked)


def _length(rules: ImageRules) -> jax.Array:
    """Tokens of an image of each row, or of all, those that end it included."""
    return rules.grid[:, 0] * (rules.grid[:, 1] + (rules.row_end >= 0)) + rules.tail.size
