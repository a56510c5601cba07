"""Rows of the output layer for new tokens, fitted to kept states of a frozen LLM.

Where the LLM and what it reads stay as they are, its states do not depend on the rows that say new tokens: whether one
of them comes next is a logistic regression, which is convex and takes seconds, not a training of the LLM. The LLM was
read once (`mmjax.train.features.cache_predictions`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


@functools.partial(jax.jit, static_argnames=("count", "steps"))
def _minimise(
    states: jax.Array, others: jax.Array, targets: jax.Array, penalty: jax.Array, count: int, steps: int
) -> jax.Array:
    """[D, count]: where `steps` steps of L-BFGS lead."""

    def loss(kernel: jax.Array) -> jax.Array:
        logits = states @ kernel
        # What is said of old tokens is one number, as none of them changes.
        every = jnp.logaddexp(others, jax.nn.logsumexp(logits, axis=-1))
        named = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], axis=1)[:, 0]
        wanted = jnp.where(targets < 0, others, named)
        return jnp.mean(every - wanted) + penalty / 2 * jnp.sum(jnp.square(kernel))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        kernel, state = carry
        value, grad = value_and_grad(kernel, state=state)
        updates, state = solver.update(grad, state, kernel, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(kernel, updates), state), None

    kernel = jnp.zeros((states.shape[1], count), jnp.float32)
    (kernel, _), _ = jax.lax.scan(step, (kernel, solver.init(kernel)), length=steps)
    return kernel


def fit_new_rows(
    states: np.ndarray, others: np.ndarray, targets: np.ndarray, count: int, penalty: float = 1e-3, steps: int = 100
) -> np.ndarray:
    """Multinomial logistic regression of the new tokens, and of all others as one class, on hidden states.

    Minimises mean(-log p(target)) + penalty / 2 * v * |kernel|^2, where v is the mean square of the states, so that
    `penalty` means the same at any scale.

    Args:
        states: [n, D], final-normed, each of a place where a token is said.
        others: [n], the logarithm of the sum of exp(logit) of all old tokens there.
        targets: int [n], which new token is to be said, from 0, or -1: an old one.
        count: of new tokens.
        penalty: of large rows; above 0.
        steps: of L-BFGS.

    Returns:
        float32 [D, count], the kernel of the output layer's new rows.

    Raises:
        ValueError: the counts differ, a target is out of range, a token that is never to be said, a penalty that is
            not above 0, or numbers that are not finite.
    """
    if not len(states) == len(others) == len(targets) or states.ndim != 2:
        counts = f"{len(others)} others and {len(targets)} targets"
        raise ValueError(f"states {states.shape}, {counts}; wanted [n, D], n and n")
    found = set(np.unique(targets).tolist())
    if not found <= set(range(-1, count)) or not found >= set(range(count)):
        raise ValueError(f"targets are {sorted(found)}; wanted each of 0 to {count - 1}, and -1 for old tokens")
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    if not (np.isfinite(states).all() and np.isfinite(others).all()):
        raise ValueError("states and others must be finite")
    scale = float(np.sqrt(np.mean(np.square(states, dtype=np.float64)))) or 1.0
    kernel = _minimise(
        jnp.asarray(states / scale, jnp.float32), jnp.asarray(others, jnp.float32), jnp.asarray(targets, jnp.int32),
        jnp.float32(penalty), count, steps,
    )  # fmt: skip
    return np.asarray(kernel) / np.float32(scale)
