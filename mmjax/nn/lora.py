"""Low-rank adapters as leaves beside the kernels they adapt (Hu et al., 2021, "LoRA").

A Linear whose config names its own name among `targets` has `lora_a` [*in, r] and `lora_b` [r, *out]
beside `kernel`. Since they are ordinary leaves, freezing, sharding, checkpoints and export need no
special case; adding and merging are operations on the tree.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which linear maps have a low-rank path, and how large.

    Attributes:
        rank: inner width r.
        alpha: the low-rank path is scaled by alpha / rank.
        targets: names of the linear maps inside a block.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"lora.rank must be at least 1, got {self.rank}")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ConfigError(f"lora.targets {list(self.targets)}: each must be one of {', '.join(TARGETS)}")

    def at(self, name: str) -> "LoRAConfig | None":
        """Itself where `name` is a target, else None."""
        return self if name in self.targets else None


def add_lora(params: dict[str, Any], lora: LoRAConfig, rng: jax.Array) -> dict[str, Any]:
    """Puts fresh `lora_a` (normal, 1/sqrt(fan in)) and `lora_b` (zero) beside every targeted kernel of a backbone.

    Args:
        params: a backbone's params, blocks stacked ([L, ...] leaves); kernels [L, *in, *out].
        lora: rank, alpha, targets.
        rng: key for `lora_a`.

    Returns:
        A new tree; the other leaves are the same arrays. The outputs are unchanged until `lora_b` moves.

    Raises:
        ValueError: the tree has LoRA leaves already, or no targeted kernel.
    """
    found = 0

    def visit(tree, name, parent):
        nonlocal found
        if not isinstance(tree, dict):
            return tree
        if "lora_a" in tree:
            raise ValueError("these params have LoRA leaves already; merge them first")
        tree = {key: visit(value, key, name) for key, value in tree.items()}
        if "kernel" in tree and parent in ("attn", "mlp") and name in lora.targets:
            kernel = tree["kernel"]
            in_dims = 2 if name == "o" else 1
            layers, shape_in, shape_out = (
                kernel.shape[0],
                kernel.shape[1 : 1 + in_dims],
                kernel.shape[1 + in_dims :],
            )
            key = jax.random.fold_in(rng, found)
            found += 1
            a = jax.random.normal(key, (layers, *shape_in, lora.rank), jnp.float32) / math.sqrt(
                math.prod(shape_in)
            )
            b = jnp.zeros((layers, lora.rank, *shape_out), jnp.float32)
            tree = {**tree, "lora_a": a.astype(kernel.dtype), "lora_b": b.astype(kernel.dtype)}
        return tree

    out = {**params, "blocks": visit(params["blocks"], "blocks", "")}
    if not found:
        raise ValueError(f"no kernel named {', '.join(lora.targets)} under 'blocks' to adapt")
    return out


def merge_lora(params: dict[str, Any], lora: LoRAConfig) -> dict[str, Any]:
    """Adds (alpha / rank) * a @ b into each adapted kernel (in float32) and drops the LoRA leaves.

    Args:
        params: a backbone's params with stacked blocks.
        lora: the config that the leaves were made with.
    """

    def visit(tree):
        if not isinstance(tree, dict):
            return tree
        tree = {key: visit(value) for key, value in tree.items()}
        if "lora_a" not in tree:
            return tree
        a, b = tree.pop("lora_a"), tree.pop("lora_b")
        kernel = tree["kernel"]
        flat_a = jnp.reshape(a, (a.shape[0], -1, lora.rank)).astype(jnp.float32)
        flat_b = jnp.reshape(b, (b.shape[0], lora.rank, -1)).astype(jnp.float32)
        delta = jnp.einsum("lir,lro->lio", flat_a, flat_b, precision="highest") * (lora.alpha / lora.rank)
        tree["kernel"] = (kernel.astype(jnp.float32) + delta.reshape(kernel.shape)).astype(kernel.dtype)
        return tree

    return visit(params)
