"""Who sees whom in a Q-Former, for each of BLIP-2's three objectives (Li et al., 2023, "BLIP-2", figure 2)."""

import jax
import jax.numpy as jnp

from mmjax.config import check_choice

OBJECTIVES = ("contrastive", "matching", "generation")


def objective_mask(objective: str, num_queries: int, text: jax.Array) -> jax.Array:
    """May position i (second axis) see position j (last axis), Q queries first and T text tokens behind?

    Args:
        objective: "contrastive" (image and text apart: queries see queries, text sees text), "matching" (all
            see all; also how a Q-Former reads an instruction) or "generation" (queries see queries; text sees
            the queries, itself and earlier text).
        num_queries: Q.
        text: bool [B, T], False is padding, which nobody sees.

    Returns:
        bool [B, Q + T, Q + T].

    Raises:
        ConfigError: another objective.
    """
    check_choice("objective", objective, OBJECTIVES)
    text = jnp.asarray(text, bool)
    index = jnp.arange(num_queries + text.shape[1])
    is_text = index >= num_queries
    to_query, to_text = ~is_text[None, :], is_text[None, :]
    from_query, from_text = ~is_text[:, None], is_text[:, None]
    if objective == "contrastive":
        seen = (from_query & to_query) | (from_text & to_text)
    elif objective == "matching":
        seen = jnp.ones((len(index), len(index)), bool)
    else:
        seen = to_query | (from_text & to_text & (index[None, :] <= index[:, None]))
    there = jnp.concatenate([jnp.ones((text.shape[0], num_queries), bool), text], axis=1)
    return seen & there[:, None, :]
