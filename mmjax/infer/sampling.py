"""From next-token logits to next tokens: greedy, temperature, top-k, top-p, minimum length, repetition
penalty.

Every function takes logits float32 [B, V] and is pure. The meaning of every knob is that of the logits
processors of transformers, applied in their order: repetition penalty, forbidden stop ids, temperature,
top-k, top-p. `Branches` holds what shapes the program (a jit's static argument), `Numbers` what does not
(traced arrays, so a new temperature compiles nothing).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from mmjax.infer.constrained import ImageRules, guided, only_allowed, required


@dataclass(frozen=True)
class Branches:
    """What of the sampling is compiled in. top_k is here because it is a shape; 0 is no limit."""

    do_sample: bool = False
    top_k: int = 0
    top_p: bool = False
    min_new_tokens: bool = False
    repetition_penalty: bool = False
    follow: bool = False
    guidance: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Numbers:
    """What the compiled program reads: float32 and int32 scalars, stop_ids int32 [n], follow int32 [m, 2].

    stop_ids may be filled up with `NO_STOP_ID`, so that their number is no new shape. `images` are the rules of a model
    that writes images as tokens, or None.
    """

    temperature: jax.Array
    top_p: jax.Array
    min_new_tokens: jax.Array
    repetition_penalty: jax.Array
    stop_ids: jax.Array
    pad_id: jax.Array
    follow: jax.Array
    images: ImageRules | None = None


NO_STOP_ID = 2**31 - 1  # beyond every vocabulary: equals no token, and a scatter to it is dropped


def apply_temperature(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logits [B, V] over `temperature` (> 0): below 1 sharper, above 1 flatter."""
    return logits / temperature


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """The k largest logits of each row of [B, V], the rest -inf; whatever ties with the k-th stays too."""
    keys = _ascending_keys(logits)
    k = min(k, logits.shape[-1])
    smallest_kept = _highest_key(lambda key: jnp.sum(keys >= key, axis=-1, keepdims=True) >= k, logits.shape[0])
    return jnp.where(keys < smallest_kept, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """The likeliest tokens of each row of [B, V] whose probabilities together reach p, the rest -inf.

    Holtzman et al. 2019 (nucleus sampling): as few tokens as will do, never none; whatever ties with the
    last of them stays too (transformers keeps some of the tied ones, which ones being up to its sort).
    """
    keys = _ascending_keys(logits)
    mass = jax.nn.softmax(logits, axis=-1)
    # A token stays where the likelier ones fall short of p: the threshold is the highest key that reaches p.
    smallest_kept = _highest_key(
        lambda key: jnp.sum(jnp.where(keys >= key, mass, 0), axis=-1, keepdims=True) >= p, logits.shape[0]
    )
    return jnp.where(keys < smallest_kept, -jnp.inf, logits)


def _ascending_keys(logits: jax.Array) -> jax.Array:
    """uint32 keys in the order of the float32 logits: the sign bit flipped, and all the bits of a
    negative."""
    bits = lax.bitcast_convert_type(logits.astype(jnp.float32) + 0.0, jnp.uint32)  # + 0.0 makes -0.0 equal 0.0
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _highest_key(holds, batch: int) -> jax.Array:
    """The highest uint32 key [B, 1] at which `holds` (true up to some key, false beyond) is true; 0 if
    nowhere.

    Thirty-two passes fix its bits from the top. A sort of [B, V] takes ten times as long on a CPU.
    """

    def fix_bit(i, key):
        candidate = key | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, key)

    return lax.fori_loop(0, 32, fix_bit, jnp.zeros((batch, 1), jnp.uint32))


def forbid(logits: jax.Array, ids: jax.Array, when: jax.Array) -> jax.Array:
    """Logits [B, V] with the columns `ids` int32 [n] at -inf where the scalar `when` is true."""
    return jnp.where(when, logits.at[:, ids].set(-jnp.inf, mode="drop"), logits)


def penalise_repeats(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Logits [B, V] of tokens already `seen` (bool [B, V]) made less likely by the factor `penalty` (> 1).

    Keskar et al. 2019 (CTRL), with negative logits multiplied rather than divided, as transformers does.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def greedy(logits: jax.Array) -> jax.Array:
    """The index int32 [B] of the largest logit of each row; of equal ones the first."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def draw(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """One token int32 [B] of softmax(logits [B, V]) per row, each row with its own key of `keys` [B].

    A row's draw therefore depends neither on its neighbours nor on their number. By inversion: one uniform
    number a row, looked up first among the sums of blocks of 256 tokens and then inside one block, where
    Gumbel noise would need V random numbers a row.
    """
    batch, vocab = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab % 256))).reshape(batch, -1, 256)
    ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = ends[:, -1] * jax.vmap(jax.random.uniform)(keys)  # below the last end: uniform is below 1
    block = jnp.sum(ends <= target[:, None], axis=-1, keepdims=True)
    start = jnp.where(block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0), axis=-1), 0)
    inside = jnp.take_along_axis(blocks, block[..., None], axis=1)[:, 0]
    token = jnp.sum(jnp.cumsum(inside, axis=-1) <= target[:, None] - start, axis=-1)
    # Rounding may put the target behind the block's last token of any weight: then it is that one.
    last = 255 - jnp.argmax(inside[:, ::-1] > 0, axis=-1)
    return (block[:, 0] * 256 + jnp.minimum(token, last)).astype(jnp.int32)


def row_keys(seed: jax.Array, rows: jax.Array) -> jax.Array:
    """A key [B] for each row, from the seed and the rows' numbers int32 [B] alone."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), rows)


def sample(
    logits: jax.Array,
    keys: jax.Array,
    branches: Branches,
    numbers: Numbers,
    step: jax.Array | int = 0,
    seen: jax.Array | None = None,
    before: jax.Array | None = None,
    place: jax.Array | None = None,
) -> jax.Array:
    """The next token int32 [B] of every row.

    logits float32 [B, V]; keys [B], one per row for the whole generation (the step is folded in here);
    `step` is how many new tokens each row has already; `seen` bool [B, V] is needed only with a repetition
    penalty; `before` int32 [B], each row's newest token, only where tokens follow others; `place` int32 [B], where
    each row is in an image, only where images are written as tokens. With guidance the second half of the rows is
    what guidance leads away from, and writes what the first half does.
    """
    belongs = None if place is None else required(numbers.images, place)
    if branches.guidance:
        half = logits.shape[0] // 2
        logits = guided(numbers.images, place[:half], logits)
        keys, place, belongs = keys[:half], place[:half], belongs[:half]
        seen, before = (None if leaf is None else leaf[:half] for leaf in (seen, before))
    token = _choose(logits, keys, branches, numbers, step, seen, place)
    token = _follow(token, branches, numbers, before)
    if belongs is not None:
        token = jnp.where(belongs < 0, token, belongs)
    return jnp.tile(token, 2) if branches.guidance else token


def _follow(token, branches: Branches, numbers: Numbers, before) -> jax.Array:
    """What comes behind `before` whatever the model says, else `token`."""
    if not branches.follow or before is None:
        return token
    first, second = numbers.follow[:, 0], numbers.follow[:, 1]
    forced = jnp.max(jnp.where(before[:, None] == first, second, -1), axis=1)
    return jnp.where(forced < 0, token, forced)


def _choose(logits, keys, branches: Branches, numbers: Numbers, step, seen, place) -> jax.Array:
    """What a row says next of its own accord."""
    if place is not None:
        logits = only_allowed(numbers.images, place, logits)
    if branches.repetition_penalty:
        logits = penalise_repeats(logits, seen, numbers.repetition_penalty)
    if branches.min_new_tokens:
        logits = forbid(logits, numbers.stop_ids, step < numbers.min_new_tokens)
    if not branches.do_sample:
        return greedy(logits)
    logits = apply_temperature(logits, numbers.temperature)
    if branches.top_k:
        logits = keep_top_k(logits, branches.top_k)
    if branches.top_p:
        logits = keep_top_p(logits, numbers.top_p)
    return draw(logits, jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step))
