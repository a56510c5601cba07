"""MultimodalLM: the five parts composed. The only module that knows all of them.

    media -> encoder -> projector -> backbone -> (output projector -> generator) -> media
                             text ->     |     -> text

Every method is a pure function of (params, inputs); a model without encoders is a plain LLM.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.backbones import BackboneConfig
from mmjax.backbones.decoder import Decoder
from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders import ENCODERS, EncoderConfig
from mmjax.nn.masks import attention_mask
from mmjax.nn.stack import check_remat
from mmjax.projectors import PROJECTORS, ProjectorConfig


@dataclasses.dataclass(frozen=True)
class MultimodalLMConfig:
    """Which parts, by port.

    Attributes:
        backbone: the LLM.
        encoders: port -> encoder, in the order in which their tokens are numbered.
        projectors: port -> projector; the same ports as `encoders`.
        media_tokens: port -> token id that stands in `tokens` wherever a media token stands (never looked up).
    """

    backbone: BackboneConfig
    encoders: dict[str, EncoderConfig] = dataclasses.field(default_factory=dict)
    projectors: dict[str, ProjectorConfig] = dataclasses.field(default_factory=dict)
    media_tokens: dict[str, int] = dataclasses.field(default_factory=dict)

    kind: ClassVar[str] = "multimodal_lm"

    def __post_init__(self):
        for name in ("projectors", "media_tokens"):
            ports = getattr(self, name)
            if set(ports) != set(self.encoders):
                raise ConfigError(f"{name} has ports {sorted(ports)}, encoders has {sorted(self.encoders)}")
        for port, projector in self.projectors.items():
            features = self.encoders[port].feature_width
            if projector.in_width != features:
                raise ConfigError(
                    f"projectors.{port}.in_width is {projector.in_width}; its encoder gives {features}"
                )
            if projector.width != self.backbone.width:
                raise ConfigError(
                    f"projectors.{port}.width is {projector.width}; the backbone's is {self.backbone.width}"
                )

    def num_tokens(self, port: str, grid=None, original_size=None) -> int:
        """How many LLM tokens one item of `port` becomes; plain Python, before any array exists.

        Args:
            port: name of the input.
            grid: (time, height, width) of the item in patches, where the encoder keeps native resolution.
            original_size: (height, width) in pixels, where the count depends on it.
        """
        check_choice("port", port, tuple(self.encoders))
        features = self.encoders[port].num_tokens(grid, original_size)
        return self.projectors[port].num_tokens(features, grid)


class Output(NamedTuple):
    """logits float32 [B, T, V], and the final-normed hidden states [B, T, D]."""

    logits: jax.Array
    hidden: jax.Array


@dataclasses.dataclass(frozen=True)
class MultimodalLM:
    """The model as pure functions over plain nested dicts of parameters.

    Attributes:
        config: the parts.
        dtype: compute dtype, "float32" or "bfloat16".
        param_dtype: dtype of freshly initialised parameters.
        remat: rematerialisation policy of all blocks, see `mmjax.nn.stack`.
    """

    config: MultimodalLMConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        for name in ("dtype", "param_dtype"):
            check_choice(name, getattr(self, name), ("float32", "bfloat16"))
        check_remat(self.remat)

    @functools.cached_property
    def backbone(self) -> Decoder:
        """The LLM's module."""
        return Decoder(self.config.backbone, jnp.dtype(self.dtype), self.remat)

    def encoder(self, port: str) -> nn.Module:
        """The encoder's module of a port."""
        config = self.config.encoders[port]
        return ENCODERS[type(config)](config, jnp.dtype(self.dtype), self.remat)

    def projector(self, port: str) -> nn.Module:
        """The projector's module of a port."""
        config = self.config.projectors[port]
        return PROJECTORS[type(config)](config, jnp.dtype(self.dtype))

    # Parameters

    def _create(self, rng: jax.Array) -> Any:
        """Freshly initialised parameters in their boxes, which carry the logical axes."""
        keys = iter(jax.random.split(rng, 1 + 2 * len(self.config.encoders)))
        tokens = jnp.zeros((1, 1), jnp.int32)
        params = {"backbone": self.backbone.init(next(keys), tokens, method="create")["params"]}
        for port, config in self.config.encoders.items():
            encoder, projector = self.encoder(port), self.projector(port)
            items = jnp.zeros((1, *config.item_shape))
            features = Media(jnp.zeros((1, config.num_tokens(), config.feature_width)), stage="encoded")
            encoded = encoder.init(next(keys), items, method="create")["params"]
            params.setdefault("encoders", {})[port] = encoded
            params.setdefault("projectors", {})[port] = projector.init(next(keys), features)["params"]
        return params

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Freshly initialised parameters: nested dicts of arrays, blocks stacked."""
        dtype = jnp.dtype(self.param_dtype)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), nn.unbox(self._create(rng)))

    def param_shapes(self) -> dict[str, Any]:
        """The tree of `jax.ShapeDtypeStruct` that `init` would give, without computing anything."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def param_axes(self) -> dict[str, Any]:
        """The tree of tuples of logical axis names (or None), one name a dimension."""
        boxed = jax.eval_shape(self._create, jax.random.key(0))

        def names(leaf):
            return leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else (None,) * leaf.ndim

        return jax.tree.map(names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))

    # Media

    def encode(self, params: dict[str, Any], port: str, media: Media) -> Media:
        """Raw media of one port -> features, stage "encoded"."""
        return self.encoder(port).apply({"params": params["encoders"][port]}, media)

    def encode_media(
        self, params: dict[str, Any], media: Mapping[str, Media], rng: jax.Array | None = None
    ) -> dict[str, Media]:
        """Media of every port -> tokens in the LLM's width, stage "projected".

        Media that are encoded or projected already go on from where they are. With `rng`, dropout is on.

        Raises:
            ValueError: a port that the model does not have.
        """
        out = {}
        for number, (port, item) in enumerate(media.items()):
            check_choice("media port", port, tuple(self.config.encoders))
            if item.stage == "raw":
                item = self.encode(params, port, item)
            if item.stage == "encoded":
                rngs = {} if rng is None else {"dropout": jax.random.fold_in(rng, number)}
                variables = {"params": params["projectors"][port]}
                item = self.projector(port).apply(variables, item, rng is not None, rngs=rngs)
            out[port] = item
        return out

    # Text

    def embed(
        self,
        params: dict[str, Any],
        text: TextStream,
        media: Mapping[str, Media] | None = None,
        media_owner: jax.Array | None = None,
    ) -> jax.Array:
        """Token embeddings with the projected media in place, [B, T, D].

        The one fusion at token level: where `media_index` is not -1, row `media_index` of the owner's media.
        """
        media = media or {}
        tokens = jnp.asarray(text.tokens)
        if text.media_index is None or not media:
            return self._backbone(params, "embed", tokens)
        index = jnp.asarray(text.media_index)
        embedded = self._backbone(params, "embed", jnp.where(index < 0, tokens, 0))
        rows = [media[port].values for port in self.config.encoders if port in media]
        rows = jnp.concatenate(rows, axis=1) if len(rows) > 1 else rows[0]
        if media_owner is not None:
            rows = rows[jnp.asarray(media_owner)]
        placed = jnp.take_along_axis(rows, jnp.maximum(index, 0)[..., None], axis=1, mode="clip")
        return jnp.where(index[..., None] < 0, embedded, placed.astype(embedded.dtype))

    def forward(
        self,
        params: dict[str, Any],
        texts: Mapping[str, TextStream],
        media: Mapping[str, Media] | None = None,
        media_owner: jax.Array | None = None,
    ) -> jax.Array:
        """Final-normed hidden states [B, T, D] of whole sequences; `media` are projected already."""
        text = texts["text"]
        embeddings = self.embed(params, text, media, media_owner)
        hidden, _ = self.step(params, embeddings, jnp.asarray(text.positions), attention_mask(text))
        return hidden

    def step(
        self,
        params: dict[str, Any],
        embeddings: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Any = None,
        cache_index: jax.Array | int = 0,
    ) -> tuple[jax.Array, Any]:
        """The backbone on embeddings [B, T, D]; arguments and results as `Decoder.__call__`."""
        return self._backbone(params, "__call__", embeddings, positions, mask, cache, cache_index)

    def logits(self, params: dict[str, Any], hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 logits [..., V]."""
        return self._backbone(params, "logits", hidden)

    def num_tokens(self, port: str, grid=None, original_size=None) -> int:
        """How many LLM tokens one item of `port` becomes, see `MultimodalLMConfig.num_tokens`."""
        return self.config.num_tokens(port, grid, original_size)

    def __call__(self, params: dict[str, Any], batch: Batch) -> Output:
        """Everything at once: encode, project, place, run, logits at every position."""
        media = self.encode_media(params, batch.media)
        hidden = self.forward(params, batch.texts, media, batch.media_owner)
        return Output(self.logits(params, hidden), hidden)

    def _backbone(self, params: dict[str, Any], method: str, *args) -> Any:
        return self.backbone.apply({"params": params["backbone"]}, *args, method=method)
