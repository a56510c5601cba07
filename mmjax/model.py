"""MultimodalLM: the five parts composed. The only module that knows all of them.

    media -> encoder -> projector -> backbone -> (output projector -> generator) -> media
                             text ->     |     -> text

Every method is a pure function of (params, inputs); a model without encoders is a plain LLM.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.backbones import BACKBONES
from mmjax.backbones.decoder import NO_ROUTERS
from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders import ENCODERS
from mmjax.generators.image_codes import ImageCodes
from mmjax.model_config import MultimodalLMConfig
from mmjax.nn.masks import attention_mask, cross_mask
from mmjax.nn.stack import check_remat
from mmjax.projectors import PROJECTORS
from mmjax.projectors.tiles import arrange
from mmjax.region_ports import maps_of
from mmjax.signals import create_generators

# The last few trees of shapes by what their model says of itself, see `MultimodalLM.param_shapes`.
_SHAPES: dict[str, Any] = {}


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
    def backbone(self) -> nn.Module:
        """The LLM's module."""
        return BACKBONES[type(self.config.backbone)](self.config.backbone, jnp.dtype(self.dtype), self.remat)

    def encoder(self, port: str) -> nn.Module:
        """The encoder's module of a port."""
        config = self.config.encoders[port]
        return ENCODERS[type(config)](config, jnp.dtype(self.dtype), self.remat)

    def projector(self, port: str) -> nn.Module:
        """The projector's module of a port."""
        config = self.config.projectors[port]
        return PROJECTORS[type(config)](config, jnp.dtype(self.dtype))

    @functools.cached_property
    def image_codes(self) -> ImageCodes:
        """The module of images that are written as codes."""
        return ImageCodes(self.config.codes, jnp.dtype(self.dtype))

    # Parameters

    def _create(self, rng: jax.Array) -> Any:
        """Freshly initialised parameters in their boxes, which carry the logical axes."""
        keys = iter(jax.random.split(rng, 1 + 2 * len(self.config.encoders)))
        tokens = jnp.zeros((1, 1), jnp.int32)
        params = {"backbone": self.backbone.init(next(keys), tokens, method="create")["params"]}
        for port, config in self.config.encoders.items():
            if port in self.config.shared:
                continue
            encoder = self.encoder(port)
            items = jnp.zeros((1, *config.item_shape))
            features = Media(jnp.zeros((1, config.num_tokens(), config.feature_width)), stage="encoded")
            encoded = encoder.init(next(keys), items, method="create").get("params")
            if encoded:  # there are none where patches go to the projector as they are
                params.setdefault("encoders", {})[port] = encoded
            if port in self.config.projectors and port not in self.config.shared_projectors:
                made = self.projector(port).init(next(keys), features)["params"]
                params.setdefault("projectors", {})[port] = made
        if self.config.codes is not None:
            # Far behind the keys of generators, so that adding one changes nothing that was there.
            key = jax.random.fold_in(rng, 1 << 16)
            images = jnp.zeros((1, *self.config.codes.autoencoder.feature_shape))
            params["codes"] = self.image_codes.init(key, images, method="create")["params"]
        return {**params, **create_generators(self, rng)}

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Freshly initialised parameters: nested dicts of arrays, blocks stacked."""
        dtype = jnp.dtype(self.param_dtype)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), nn.unbox(self._create(rng)))

    def param_shapes(self) -> dict[str, Any]:
        """The tree of `jax.ShapeDtypeStruct` that `init` would give, without computing anything."""
        # Tracing a whole model takes seconds, and loading, checking and writing one each ask.
        key = repr(self)
        if key not in _SHAPES:
            while len(_SHAPES) >= 8:
                del _SHAPES[next(iter(_SHAPES))]
            _SHAPES[key] = jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(lambda leaf: leaf, _SHAPES[key])

    def param_axes(self) -> dict[str, Any]:
        """The tree of tuples of logical axis names (or None), one name a dimension."""
        boxed = jax.eval_shape(self._create, jax.random.key(0))

        def names(leaf):
            return leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else (None,) * leaf.ndim

        return jax.tree.map(names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))

    # Media

    def encode(self, params: dict[str, Any], port: str, media: Media) -> Media:
        """Raw media of one port -> features, stage "encoded"."""
        owner = self.config.shared.get(port, port)
        return self.encoder(port).apply({"params": params.get("encoders", {}).get(owner, {})}, media)

    def encode_media(
        self, params: dict[str, Any], media: Mapping[str, Media], rng: jax.Array | None = None
    ) -> dict[str, Media]:
        """Media of every port -> tokens in the LLM's width, stage "projected".

        Media that are encoded or projected already go on from where they are; regions need the features of their
        images. With `rng`, dropout is on.

        Raises:
            ValueError: a port that the model does not have; regions without the features of images.
        """
        out, encoded = {}, {}
        for port, item in media.items():
            check_choice("media port", port, tuple(self.config.encoders))
            encoded[port] = self.encode(params, port, item) if item.stage == "raw" else item
        for number, (port, item) in enumerate(encoded.items()):
            if port in self.config.regions and item.stage == "encoded":
                item = item.replace(extra_features=maps_of(self.config, port, encoded))
            elif port in self.config.regions.values():
                item = item.replace(extra_features=None)
            if item.stage == "encoded" and port not in self.config.projectors:
                item = item.replace(stage="projected")
            if item.stage == "encoded":
                rngs = {} if rng is None else {"dropout": jax.random.fold_in(rng, number)}
                owner = {**self.config.shared, **self.config.shared_projectors}.get(port, port)
                variables = {"params": params["projectors"][owner]}
                item = arrange(self.projector(port).apply(variables, item, rng is not None, rngs=rngs))
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
        """Token embeddings with the projected media in place, [B, T, D], or as wide as the media are.

        The one fusion at token level: where `media_index` is not -1, row `media_index` of the owner's media.
        """
        media = {port: item for port, item in (media or {}).items() if port not in self.config.inside}
        tokens = jnp.asarray(text.tokens)
        if text.media_index is None or not media:
            return self.token_embeddings(params, tokens)
        index = jnp.asarray(text.media_index)
        embedded = self.token_embeddings(params, jnp.where(index < 0, tokens, 0))
        rows = [media[port].values for port in self.config.encoders if port in media]
        rows = jnp.concatenate(rows, axis=1) if len(rows) > 1 else rows[0]
        if media_owner is not None:
            rows = rows[jnp.asarray(media_owner)]
        placed = jnp.take_along_axis(rows, jnp.maximum(index, 0)[..., None], axis=1, mode="clip")
        # Media may hold more than stands in the text, see `DeepStack`: text has nothing there.
        more = placed.shape[-1] - embedded.shape[-1]
        embedded = jnp.pad(embedded, ((0, 0), (0, 0), (0, more))) if more else embedded
        return jnp.where(index[..., None] < 0, embedded, placed.astype(embedded.dtype))

    def forward(
        self,
        params: dict[str, Any],
        texts: Mapping[str, TextStream],
        media: Mapping[str, Media] | None = None,
        media_owner: jax.Array | None = None,
        router_logits: bool = False,
    ) -> Any:
        """Hidden states [B, T, D], as the output layer reads them, of whole sequences; `media` are projected already.

        Those of the stream that is written, see `MultimodalLMConfig.streams`; an encoder-decoder has the media in
        its query. With `router_logits`, a pair: these, and the routers' logits float32 [L, B, T, E].

        Raises:
            ConfigError: router_logits of a backbone without experts.
        """
        if router_logits and getattr(self.config.backbone, "router_top_k", None) is None:
            raise ConfigError(NO_ROUTERS)
        text = texts[self.config.streams[-1]]
        memory = self.inside(text, media, media_owner)
        if "query" in self.config.streams:
            query = texts["query"]
            memory = self.read(params, query, media, media_owner), cross_mask(text, query)
            media = None
        embeddings = self.embed(params, text, media, media_owner)
        positions, mask = jnp.asarray(text.positions), attention_mask(text)
        inside = {"memory": memory, "is_media": self.is_media(text), "router_logits": router_logits}
        hidden, _, *routers = self.step(params, embeddings, positions, mask, **inside)
        return (hidden, *routers) if router_logits else hidden

    def is_media(self, text: TextStream) -> jax.Array | None:
        """bool [B, T], which tokens of a text are of media, where the backbone treats them otherwise; else None."""
        fusion = getattr(self.config.backbone, "fusion", None)
        if not getattr(fusion, "of_media", False) or text.media_index is None:
            return None
        return jnp.asarray(text.media_index) >= 0

    def read(
        self,
        params: dict[str, Any],
        query: TextStream,
        media: Mapping[str, Media] | None = None,
        media_owner: jax.Array | None = None,
    ) -> jax.Array:
        """What an encoder-decoder's encoder makes of a query [B, S] and projected media: the memory [B, S, D]."""
        embeddings = self.embed(params, query, media, media_owner)
        positions, mask = jnp.asarray(query.positions), cross_mask(query, query)
        return self._backbone(params, "encode", embeddings, positions, mask)

    def inside(
        self, text: TextStream, media: Mapping[str, Media] | None = None, media_owner: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array] | None:
        """What is read inside the backbone: media tokens [B, N, D], and bool [B, T, N], which token sees which.

        None where there are no such media. `media_attention` of the text numbers their items, port after port; without
        it a token sees all of its row. Of a fusion that asks which media a row has, see `_present`.
        """
        if getattr(getattr(self.config.backbone, "fusion", None), "of_rows", False):
            return self._present(text, media or {})
        ports = [port for port in self.config.inside if port in (media or {})]
        if not ports:
            return None
        owner = None if media_owner is None else jnp.asarray(media_owner)
        values, items, start = [], [], 0
        for port in ports:
            tokens, numbers = media[port].values, media[port].segment_ids
            each = self.config.layout(port).per_entry if numbers is None or len(ports) > 1 else 1
            if numbers is None:
                numbers = jnp.broadcast_to(jnp.arange(tokens.shape[1]) // each + 1, tokens.shape[:2])
            values.append(tokens)
            items.append(jnp.where(jnp.asarray(numbers) > 0, jnp.asarray(numbers) + start, 0))
            sizes = media[port].grid if media[port].original_size is None else media[port].original_size
            start += tokens.shape[1] // each if sizes is None else sizes.shape[1]
        tokens, item = jnp.concatenate(values, axis=1), jnp.concatenate(items, axis=1)
        if owner is not None:
            tokens, item = tokens[owner], item[owner]
        seen = jnp.broadcast_to((item > 0)[:, None], (item.shape[0], text.tokens.shape[1], item.shape[1]))
        if text.media_attention is not None:
            allowed = jnp.asarray(text.media_attention)
            at = jnp.broadcast_to(jnp.maximum(item - 1, 0)[:, None], seen.shape)
            seen &= jnp.take_along_axis(allowed, at, axis=2, mode="fill", fill_value=False)
        return tokens, seen

    def _present(self, text: TextStream, media: Mapping[str, Media]) -> tuple[jax.Array, jax.Array]:
        """float32 [B, 1, ports], 1 for every port whose media stand in a row's text; and that all tokens see it."""
        index, start = text.media_index, 0
        index = jnp.full(text.tokens.shape, -1) if index is None else jnp.asarray(index)
        found = []
        for port in self.config.encoders:
            end = start + (media[port].values.shape[1] if port in media else 0)
            found.append(jnp.any((index >= start) & (index < end), axis=1))
            start = end
        present = jnp.stack(found, axis=-1).astype(jnp.float32) if found else jnp.zeros((index.shape[0], 1))
        return present[:, None], jnp.ones((*index.shape, 1), bool)

    def cross_keys(self, params: dict[str, Any], memory: jax.Array) -> Any:
        """What the layers read of a memory, made once for all steps, see `cross_keys` of the backbone."""
        return self._backbone(params, "cross_keys", memory)

    def step(
        self,
        params: dict[str, Any],
        embeddings: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Any = None,
        cache_index: jax.Array | int = 0,
        memory: tuple[Any, jax.Array] | None = None,
        is_media: jax.Array | None = None,
        router_logits: bool = False,
    ) -> tuple[jax.Array, ...]:
        """The backbone on embeddings [B, T, D]; arguments and results as `Decoder.__call__`.

        `memory` is an encoder-decoder's memory, or what `inside` gives (or `cross_keys` of either), and its mask.
        `is_media` is what `is_media` gives.
        """
        given = embeddings, positions, mask, cache, cache_index, *(memory or ())
        options = {} if is_media is None else {"is_media": is_media}
        options |= {"router_logits": True} if router_logits else {}
        return self._backbone(params, "__call__", *given, **options)

    def token_embeddings(self, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
        """Tokens int [..., T] -> what they are looked up as, [..., T, D]; of `MultimodalLMConfig.words`."""
        tokens, codes = jnp.asarray(tokens), self.config.codes
        if codes is None or not codes.own:
            return self._backbone(params, "embed", tokens)
        is_code = tokens >= codes.first
        words = self._backbone(params, "embed", jnp.where(is_code, 0, tokens))
        written = self.codes(params, "embed", jnp.where(is_code, tokens - codes.first, 0))
        return jnp.where(is_code[..., None], written.astype(words.dtype), words)

    def with_codes(self, params: dict[str, Any], batch: Batch) -> Batch:
        """The batch with the codes of its images in its text, where it has images as codes; else as it is.

        Args:
            params: of `ImageCodes` at least.
            batch: in every row a run of blanks for each image of `targets[codes.port]["media"]` [B, R, H, W, 3], in
                order; a text that was cut off may have fewer.
        """
        config = self.config.codes
        if config is None or config.port not in (batch.targets or {}):
            return batch
        targets = dict(batch.targets)
        images, name = jnp.asarray(targets.pop(config.port)["media"]), self.config.streams[-1]
        text = batch.texts[name]
        # In float32: rounded features would be nearest to other codes.
        module, images = ImageCodes(config), images.astype(jnp.float32)
        flat = images.reshape(-1, *images.shape[2:])
        found = module.apply({"params": params["codes"]}, flat, method="encode")
        found = jax.lax.stop_gradient(jnp.asarray(config.tokens())[found].reshape(images.shape[0], -1))
        tokens = jnp.asarray(text.tokens)
        blank = tokens == config.blank
        number = jnp.clip(jnp.cumsum(blank, axis=1) - 1, 0, found.shape[1] - 1)
        tokens = jnp.where(blank, jnp.take_along_axis(found, number, axis=1), tokens)
        return batch.replace(texts={**batch.texts, name: text.replace(tokens=tokens)}, targets=targets or None)

    def codes(self, params: dict[str, Any], method: str, values: jax.Array) -> jax.Array:
        """A method of `ImageCodes`: "encode", "decode", "embed" or "logits"."""
        return self.image_codes.apply({"params": params["codes"]}, values, method=method)

    def logits(self, params: dict[str, Any], hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 logits [..., V]."""
        return self._backbone(params, "logits", hidden)

    def next_logits(self, params: dict[str, Any], hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 logits of all tokens that may be written, `MultimodalLMConfig.words`."""
        words = self.logits(params, hidden)
        if self.config.codes is None or not self.config.codes.own:
            return words
        return jnp.concatenate([words, self.codes(params, "logits", hidden)], axis=-1)

    def num_tokens(self, port: str, grid=None, original_size=None) -> int:
        """How many LLM tokens one item of `port` becomes, see `MultimodalLMConfig.num_tokens`."""
        return self.config.num_tokens(port, grid, original_size)

    def __call__(self, params: dict[str, Any], batch: Batch) -> Output:
        """Everything at once: encode, project, place, run, logits at every position."""
        media = self.encode_media(params, batch.media)
        hidden = self.forward(params, batch.texts, media, batch.media_owner)
        return Output(self.logits(params, hidden), hidden)

    def _backbone(self, params: dict[str, Any], method: str, *args, **options) -> Any:
        return self.backbone.apply({"params": params["backbone"]}, *args, method=method, **options)
