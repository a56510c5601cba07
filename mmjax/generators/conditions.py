"""What a denoiser reads of a condition, with an error that says what is amiss."""

import jax

from mmjax.data.contracts import Condition


def read_sequence(condition: Condition | None, width: int) -> tuple[jax.Array, jax.Array | None]:
    """The tokens [B, N, width] and their mask bool [B, N] or None.

    Raises:
        ValueError: there are none, or they have another width.
    """
    return _read("sequence", None if condition is None else condition.sequence, width, "N, "), condition.mask


def read_pooled(condition: Condition | None, width: int) -> jax.Array:
    """The pooled vector [B, width].

    Raises:
        ValueError: there is none, or it has another width.
    """
    return _read("pooled vector", None if condition is None else condition.pooled, width)


def read_extra(condition: Condition | None, name: str, width: int) -> jax.Array:
    """An array [B, width] of the extras.

    Raises:
        ValueError: there is none, or it has another width.
    """
    extras = (None if condition is None else condition.extras) or {}
    return _read(name, extras.get(name), width)


def _read(name: str, value: jax.Array | None, width: int, between: str = "") -> jax.Array:
    if value is None or value.shape[-1] != width:
        found = None if value is None else tuple(value.shape)
        raise ValueError(f"the condition's {name} is {found}; wanted [B, {between}{width}]")
    return value
