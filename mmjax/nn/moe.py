"""Mixture of experts: each token's feed-forward layer is the few experts that a router picks for it.

No expert has a capacity, so no token is ever dropped and a token's output does not depend on its neighbours
(Mixtral: Jiang et al., 2024; the router's softmax and its balance: Fedus et al., 2021, "Switch Transformer").
Shared experts, through which all tokens go, as in Qwen2-MoE (Yang et al., 2024).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from mmjax.config import ConfigError, check_choice
from mmjax.distributed.rules import constrain, mesh_axes, spec
from mmjax.nn.linear import Linear, fan_in_normal
from mmjax.nn.mlp import ACTIVATIONS, MLP

ROUTINGS = ("auto", "dense", "grouped")
Kernels = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Sizes and options of a mixture of experts.

    Attributes:
        num_experts, width: E, and F of one expert.
        top_k: how many experts a token goes to.
        normalize: whether the weights of a token's experts are scaled to a sum of 1.
        shared_width: F of an expert that every token goes to; None for no such expert.
        shared_gate: whether the shared expert is weighted by a sigmoid of the token.
        routing: "dense" computes every expert for every token and weighs what was not picked with 0; "grouped"
            sorts tokens by expert and computes those that were picked. Their outputs are the same. "auto" is
            dense on a CPU, where XLA has no grouped product and writes it out as more work than the dense one,
            else grouped.
    """

    num_experts: int
    top_k: int
    width: int
    normalize: bool = True
    shared_width: int | None = None
    shared_gate: bool = False
    routing: str = "auto"

    kind: ClassVar[str] = "mixture"

    def __post_init__(self):
        check_choice("moe.routing", self.routing, ROUTINGS)
        for name in ("num_experts", "width", "shared_width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"moe.{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"moe.top_k must be from 1 to num_experts {self.num_experts}, got {self.top_k}")
        if self.shared_gate and self.shared_width is None:
            raise ConfigError("moe.shared_gate needs shared_width: there is no shared expert to weigh")


def route(logits: jax.Array, top_k: int, normalize: bool = True) -> tuple[jax.Array, jax.Array]:
    """Router logits [..., E] -> (weights float32 [..., k], experts int32 [..., k]), the heaviest first."""
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), top_k)
    return weights / weights.sum(-1, keepdims=True) if normalize else weights, experts


def router_load(logits: jax.Array, top_k: int, mask: jax.Array | None = None) -> jax.Array:
    """The fraction of tokens that go to each expert, over all leading axes.

    Args:
        logits: [..., E], of one layer or of several.
        top_k: how many experts a token goes to.
        mask: bool, broadcast against logits' leading axes ([B, T] for [L, B, T, E]); False for padding.

    Returns:
        float32 [E] with sum top_k; top_k / E everywhere where experts are used alike.
    """
    _, experts = route(logits, top_k)
    picked = jax.nn.one_hot(experts, logits.shape[-1], dtype=jnp.float32).sum(-2)
    return _mean(picked, mask)


def load_balancing_loss(logits: jax.Array, top_k: int, mask: jax.Array | None = None) -> jax.Array:
    """E times the sum over experts of load times mean probability (Fedus et al., 2021, equations 4 to 6).

    Args:
        logits, top_k, mask: as of `router_load`; the tokens of all layers count as one batch, as in Mixtral.

    Returns:
        float32 scalar, top_k where experts are used alike. Its gradient goes through the probabilities alone.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return logits.shape[-1] * jnp.sum(router_load(logits, top_k, mask) * _mean(probabilities, mask))


def _mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of [..., E] over the tokens that count, [E]; zeros where none does."""
    counts = jnp.ones(values.shape[:-1]) if mask is None else jnp.broadcast_to(mask, values.shape[:-1])
    counts = counts.astype(jnp.float32)
    axes = tuple(range(values.ndim - 1))
    return jnp.sum(values * counts[..., None], axes) / jnp.maximum(counts.sum(), 1.0)


class ExpertKernel(nn.Module):
    """One kernel of every expert, [E, in, out]."""

    shape: tuple[int, int, int]
    axes: tuple[str, str, str]

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.with_logical_partitioning(fan_in_normal(self.shape[1:2]), self.axes)
        return self.param("kernel", init, self.shape)


class Experts(nn.Module):
    """The kernels of all experts: up and, where gated, gate [E, D, F], down [E, F, D]."""

    num_experts: int
    width: int
    hidden: int
    gated: bool

    @nn.compact
    def __call__(self) -> Kernels:
        inner, outer = (self.num_experts, self.width, self.hidden), (self.num_experts, self.hidden, self.width)
        names = ("gate", "up") if self.gated else ("up",)
        kernels = {name: ExpertKernel(inner, ("expert", "embed", "mlp"), name=name)() for name in names}
        return {**kernels, "down": ExpertKernel(outer, ("expert", "mlp", "embed"), name="down")()}


class Mixture(nn.Module):
    """Stands where an MLP would: the weighted sum of each token's experts, and of a shared one where there is."""

    width: int
    config: MixtureConfig
    activation: str
    gated: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, D] -> ([B, T, D], the router's logits float32 [B, T, E])."""
        c = self.config
        x = x.astype(self.dtype)
        # Which experts a token goes to hangs on small differences: in float32 whatever the compute dtype.
        logits = Linear((c.num_experts,), ("embed", "feature"), name="router")(x)
        weights, experts = route(logits, c.top_k, c.normalize)
        kernels = Experts(c.num_experts, self.width, c.width, self.gated, name="experts")()
        kernels = {name: kernel.astype(self.dtype) for name, kernel in kernels.items()}
        run = dense if self.is_initializing() else RUN[c.routing]
        y = run(x, weights, experts, kernels, self.activation)
        if c.shared_width is not None:
            shared = MLP(self.width, c.shared_width, self.activation, self.gated, dtype=self.dtype, name="shared")(x)
            if c.shared_gate:
                gate = Linear((1,), ("embed", "feature"), dtype=self.dtype, name="shared_gate")(x)
                shared = jax.nn.sigmoid(gate) * shared
            y = y + shared
        return y, logits


def _hidden(product: Callable[[jax.Array], jax.Array], kernels: Kernels, activation: str) -> jax.Array:
    act, up = ACTIVATIONS[activation], product(kernels["up"])
    return act(product(kernels["gate"])) * up if "gate" in kernels else act(up)


def dense(x: jax.Array, weights: jax.Array, experts: jax.Array, kernels: Kernels, activation: str) -> jax.Array:
    """Every expert on every token; those that were not picked have weight 0.

    Args:
        x: [B, T, D].
        weights, experts: [B, T, k], see `route`.
        kernels: see `Experts`.
        activation: a name of `mmjax.nn.mlp.ACTIVATIONS`.

    Returns:
        [B, T, D].
    """
    count = kernels["up"].shape[0]
    each = jnp.einsum("btk,btke->ebt", weights, jax.nn.one_hot(experts, count, dtype=weights.dtype))
    h = _hidden(lambda kernel: jnp.einsum("btd,edf->ebtf", x, kernel), kernels, activation)
    h = constrain(h * each[..., None].astype(h.dtype), "expert", "batch", "length", "act_mlp")
    return jnp.einsum("ebtf,efd->btd", h, kernels["down"])


def grouped(x: jax.Array, weights: jax.Array, experts: jax.Array, kernels: Kernels, activation: str) -> jax.Array:
    """The same as `dense`, with tokens sorted by expert and one ragged product for each kernel.

    On a mesh, each device sorts the tokens that it has and computes the experts that it has (of each its part
    of F); the sum over the mesh axes of "expert" and "mlp" is the one exchange.

    Raises:
        ConfigError: the mesh does not divide E or F.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1 or any(kind is AxisType.Manual for kind in mesh.axis_types)
    if alone:
        return _grouped(x, weights, experts, kernels, activation)
    splits = {axis: math.prod(mesh.shape[name] for name in mesh_axes(axis)) for axis in ("expert", "mlp")}
    for axis, size in zip(splits, (kernels["up"].shape[0], kernels["up"].shape[2]), strict=True):
        if size % splits[axis]:
            raise ConfigError(f"moe: {axis} {size} is not a multiple of the mesh's {splits[axis]}")
    tokens = spec(("batch", "length", None))
    # A batch that the mesh does not divide (one prompt) is the same on all devices.
    tokens = PartitionSpec(*(
        entry if entry and size % _parts(mesh, entry) == 0 else None
        for entry, size in zip(tokens, x.shape, strict=True)
    ))  # fmt: skip
    inner = {"up": spec(("expert", None, "mlp")), "gate": spec(("expert", None, "mlp"))}
    layout = {name: inner.get(name, spec(("expert", "mlp", None))) for name in kernels}
    over = (*mesh_axes("expert"), *mesh_axes("mlp"))

    def local(x, weights, experts, kernels):
        # Every device uses its copy of a token otherwise: said here, so that gradients of the copies are summed.
        x, weights, experts = jax.lax.pcast((x, weights, experts), over, to="varying")
        first = kernels["up"].shape[0] * jax.lax.axis_index(mesh_axes("expert"))
        return jax.lax.psum(_grouped(x, weights, experts - first, kernels, activation), over)

    return jax.shard_map(local, mesh=mesh, in_specs=(tokens, tokens, tokens, layout), out_specs=tokens)(
        x, weights, experts, kernels
    )


def _parts(mesh, entry: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in ((entry,) if isinstance(entry, str) else entry))


def _grouped(x, weights, experts, kernels, activation):
    """The part of the sum that the experts 0 to the count of `kernels` give; other numbers are elsewhere."""
    count, top_k = kernels["up"].shape[0], experts.shape[-1]
    experts = experts.reshape(-1)
    here = (experts >= 0) & (experts < count)
    experts = jnp.where(here, experts, count)  # last in the order, in no group
    order = jnp.argsort(experts)
    sizes = jnp.zeros(count, jnp.int32).at[experts].add(1, mode="drop")
    # What a ragged product gives for rows beyond the last group is not defined: they are masked on both sides.
    here = here[order][:, None]
    rows = jnp.where(here, x.reshape(-1, x.shape[-1])[order // top_k], 0)
    h = _hidden(lambda kernel: jax.lax.ragged_dot(rows, kernel, sizes), kernels, activation)
    h = jnp.where(here, h * weights.reshape(-1)[order][:, None].astype(h.dtype), 0)
    y = jnp.where(here, jax.lax.ragged_dot(h, kernels["down"], sizes), 0)
    back = jnp.argsort(order)
    return y[back].reshape(*x.shape[:-1], top_k, x.shape[-1]).sum(-2)


def auto(x: jax.Array, weights: jax.Array, experts: jax.Array, kernels: Kernels, activation: str) -> jax.Array:
    """`dense` where the program is compiled for a CPU, else `grouped`."""
    cpu, default = (functools.partial(run, activation=activation) for run in (dense, grouped))
    return jax.lax.platform_dependent(x, weights, experts, kernels, cpu=cpu, default=default)


RUN = {"auto": auto, "dense": dense, "grouped": grouped}
