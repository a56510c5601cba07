"""Modality experts: low-rank experts of every MLP, first trained each on its own modality, then mixed by a router.

Li et al., 2024 ("Uni-MoE"). An expert is the text model's MLP with low-rank paths of its own, which is what low-rank
training of a copy of it gives. While experts are trained, a row goes to those of the modalities that it has
(`routing` "modality"); afterwards a router sends every token to a few (`routing` "router").
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.nn.block import BlockConfig
from mmjax.nn.linear import fan_in_normal
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.mlp import MLP
from mmjax.nn.moe import route
from mmjax.nn.stack import run_stack, side_by_side

ROUTINGS = ("modality", "router")
TARGETS = ("gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class ModalityExpertsConfig:
    """Sizes of the experts.

    Attributes:
        num_experts: E; expert number i is that of the model's port number i.
        rank, alpha: of the low-rank paths, scaled by alpha / rank.
        top_k: how many experts the router sends a token to; their weights are scaled to a sum of 1.
        routing: "router", or "modality": the experts of the ports whose media a row has, all alike; all experts where
            it has none. A stage says it, see `StageConfig.fusion`.
    """

    num_experts: int
    rank: int
    alpha: float
    top_k: int = 2
    routing: str = "router"

    kind: ClassVar[str] = "modality_experts"
    # It asks which media a row has, see `MultimodalLM.inside`.
    of_rows: ClassVar[bool] = True

    @property
    def router_top_k(self) -> int | None:
        """How many experts a router sends a token to; None where there is none."""
        return self.top_k if self.routing == "router" else None

    def __post_init__(self):
        check_choice("fusion.routing", self.routing, ROUTINGS)
        for name in ("num_experts", "rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fusion.{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"fusion.top_k must be from 1 to num_experts {self.num_experts}, got {self.top_k}")

    def check(self, block: BlockConfig, num_layers: int) -> None:
        """Raises ConfigError for blocks whose MLP cannot have such experts."""
        if block.moe is not None or block.sub_norm:
            raise ConfigError(f"fusion of kind {self.kind!r} needs a plain MLP, not backbone.moe or sub_norm")
        if block.lora is not None and set(block.lora.targets) & set(TARGETS):
            raise ConfigError(f"fusion of kind {self.kind!r}: lora.targets must leave out {', '.join(TARGETS)}")


class ModalityExperts(nn.Module):
    """The experts of all blocks.

    All experts are computed for all tokens, and those that were not picked weigh nothing: shapes do not hang on the
    router. Parameters: blocks {router {kernel [L, D, E]}, and of gate (where there is one), up and down lora_a
    [L, E, in, rank] and lora_b [L, E, rank, out]}; lora_b starts at zero: every expert is the text's MLP.

    Attributes:
        config, block, num_layers, dtype, remat: as `GatedCrossAttention`.
    """

    config: ModalityExpertsConfig
    block: BlockConfig
    num_layers: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c, width, hidden = self.config, self.block.width, self.block.mlp_width
        names = TARGETS if self.block.gated else TARGETS[1:]

        def init(rng):
            def leaf(value, *axes):
                return nn.LogicallyPartitioned(value, ("layers", *axes))

            keys = dict(zip(("router", *names), jax.random.split(rng, 1 + len(names)), strict=True))
            made = {}
            for name in names:
                (size_in, axis_in), (size_out, axis_out) = (width, "embed"), (hidden, "mlp")
                if name == "down":
                    (size_in, axis_in), (size_out, axis_out) = (size_out, axis_out), (size_in, axis_in)
                shape = (self.num_layers, c.num_experts, size_in, c.rank)
                made[name] = {
                    "lora_a": leaf(fan_in_normal((size_in,))(keys[name], shape), "expert", axis_in, "rank"),
                    "lora_b": leaf(jnp.zeros((*shape[:2], c.rank, size_out)), "expert", "rank", axis_out),
                }
            router = fan_in_normal((width,))(keys["router"], (self.num_layers, width, c.num_experts))
            return {**made, "router": {"kernel": leaf(router, "embed", "feature")}}

        self.blocks = self.param("blocks", init) if self.is_initializing() else self.get_variable("params", "blocks")
        b = self.block
        lora = LoRAConfig(c.rank, c.alpha, TARGETS)
        self.expert = MLP(b.width, b.mlp_width, b.activation, b.gated, b.mlp_bias, lora, self.dtype, parent=None)

    def keys(self, memory: jax.Array) -> tuple[jax.Array]:
        """What decoding keeps of a memory: itself."""
        return (memory,)

    def _weights(
        self, router: jax.Array, x: jax.Array, present: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """float32 [B, T, E], with sum 1, of x [B, T, D] and present [B, ports]; and a router's logits."""
        c = self.config
        if c.routing == "modality":
            some = jnp.any(present > 0, axis=1, keepdims=True)
            rows = jnp.where(some, present, jnp.ones(c.num_experts))
            rows = rows / rows.sum(axis=1, keepdims=True)
            return jnp.broadcast_to(rows[:, None], (*x.shape[:2], c.num_experts)), None
        logits = x.astype(jnp.float32) @ router.astype(jnp.float32)
        weights, experts = route(logits, c.top_k)
        return jnp.einsum("btk,btke->bte", weights, jax.nn.one_hot(experts, c.num_experts)), logits

    def __call__(
        self,
        apply: Callable[..., tuple[jax.Array, Any]],
        blocks: Any,
        x: jax.Array,
        cache: Any = None,
        memory: Any = None,
        memory_mask: jax.Array | None = None,
        is_media: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Runs the decoder's blocks with experts in their MLPs' places.

        Args:
            apply: as of `run_stack`, with a keyword `inside`, see `Block`.
            blocks, x, cache: as `run_stack`.
            memory: [B, 1, ports], above 0 where a row has media of a port, or what `keys` made of it; None: no row has.
            memory_mask, is_media: not read.

        Returns:
            x, and the cache in the form it came in.

        Raises:
            ValueError: more ports than experts.
        """
        c = self.config
        memory = memory[0] if isinstance(memory, tuple) else memory
        present = jnp.zeros((x.shape[0], c.num_experts)) if memory is None else memory[:, 0]
        if present.shape[1] > c.num_experts:
            raise ValueError(f"{present.shape[1]} ports of media, but fusion.num_experts is {c.num_experts}")
        present = jnp.pad(present, ((0, 0), (0, c.num_experts - present.shape[1])))

        def run(layer, x, layer_cache):
            # Where some layers have a window, each stands beside whether it has one.
            mlp = layer["text"].get("params", layer["text"])["mlp"]
            experts = {name: leaves for name, leaves in layer["own"].items() if name != "router"}

            def mixed(h):
                weights, logits = self._weights(layer["own"]["router"]["kernel"], h, present)

                def one(own):
                    joined = {name: {**leaves, **own.get(name, {})} for name, leaves in mlp.items()}
                    return self.expert.apply({"params": joined}, h)

                each = jax.lax.map(one, experts)
                return jnp.einsum("ebtd,bte->btd", each, weights.astype(self.dtype)), logits

            return apply(layer["text"], x, layer_cache, inside={"mlp": mixed})

        return run_stack(run, side_by_side(text=blocks, own=self.blocks), x, cache, self.remat)
