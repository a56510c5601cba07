"""Generators behind a language model: signals in its text, what they are made into, and what is made of that.

    hidden states at signal tokens -> output projector -> Condition -> generator -> media

A signal is a run of control tokens that the model writes where it wants something made (LISA's one [SEG]). Pure
functions of a `mmjax.model.MultimodalLM` and its parameters, which lie in generators/<port>, output_projectors/<port>
and generator_encoders/<port>.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Condition, Media, TextStream
from mmjax.encoders import ENCODERS
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.encoders.dual import TEXT_TOWERS
from mmjax.generators import GENERATORS
from mmjax.generators.diffusion import draw
from mmjax.generators.mask_decoder import Masks
from mmjax.generators.schedules.steps import Steps
from mmjax.output_projectors import OUTPUT_PROJECTORS

STATES = ("at", "before")


def check_generators(config: Any) -> None:
    """Raises ConfigError unless the generators of a `MultimodalLMConfig` fit its other parts."""
    check_choice("signal_states", config.signal_states, STATES)
    for name in ("output_projectors", "signal_tokens"):
        if set(getattr(config, name)) != set(config.generators):
            raise ConfigError(
                f"{name} has ports {sorted(getattr(config, name))}, generators has {sorted(config.generators)}"
            )
    for port in config.generator_encoders:
        check_choice("generator_encoders", port, tuple(config.generators))
    for port, generator in config.generators.items():
        if port in config.encoders:
            raise ConfigError(f"generators.{port}: encoders has that port too; what goes in and out differ in name")
        projector, backbone = config.output_projectors[port], config.backbone
        if (projector.in_width, projector.width) != (backbone.width, generator.condition_width):
            raise ConfigError(
                f"output_projectors.{port} maps {projector.in_width} channels to {projector.width}; the backbone has "
                f"{backbone.width}, the generator takes {generator.condition_width}"
            )
        ids = config.signal_tokens[port]
        if not ids or len(set(ids)) < len(ids) or not all(0 <= number < backbone.vocab_size for number in ids):
            raise ConfigError(
                f"signal_tokens.{port} is {ids}; wanted at least one, all different and below {backbone.vocab_size}"
            )
        generator.check_encoder(config.generator_encoders.get(port))
        if hasattr(generator, "of"):
            check_choice(f"{generator.kind}.of", generator.of, tuple(config.encoders))
        check_negative(port, generator, config.generator_encoders.get(port))


def check_negative(port: str, generator: Any, encoder: Any) -> None:
    """Raises ConfigError unless the text that guidance leads away from is one that the text encoder can read."""
    negative = getattr(generator, "negative_tokens", ())
    if negative and not all(0 <= number < encoder.vocab_size for number in negative):
        raise ConfigError(f"generators.{port}.negative_tokens: ids must be below {encoder.vocab_size}, got {negative}")
    if negative and encoder.max_positions and len(negative) > encoder.max_positions:
        raise ConfigError(
            f"generators.{port}.negative_tokens: {len(negative)} tokens, its encoder reads {encoder.max_positions}"
        )


def _output_projector(model: Any, port: str) -> Any:
    config = model.config.output_projectors[port]
    return OUTPUT_PROJECTORS[type(config)](config, jnp.dtype(model.dtype))


def generator_of(model: Any, port: str) -> Any:
    """The module of a generator."""
    config = model.config.generators[port]
    return GENERATORS[type(config)](config, jnp.dtype(model.dtype), model.remat)


def _encoder(model: Any, port: str) -> Any:
    config = model.config.generator_encoders[port]
    return {**ENCODERS, **TEXT_TOWERS}[type(config)](config, jnp.dtype(model.dtype), model.remat)


def create_generators(model: Any, rng: jax.Array) -> dict[str, dict[str, Any]]:
    """Fresh parameters of all generators, in the boxes that carry their logical axes."""
    config, made = model.config, {}
    for number, (port, generator) in enumerate(config.generators.items(), 1):
        keys = iter(jax.random.split(jax.random.fold_in(rng, number), 3))
        states = jnp.zeros((1, len(config.signal_tokens[port]), config.backbone.width))
        projector = _output_projector(model, port).init(next(keys), states)
        made.setdefault("output_projectors", {})[port] = projector["params"]
        features = jnp.zeros((1, *generator.feature_shape))
        own = generator_of(model, port).init(next(keys), features, method="create").get("params")
        if own:  # there are none where embeddings are written as they are
            made.setdefault("generators", {})[port] = own
        if port in config.generator_encoders:
            encoder = config.generator_encoders[port]
            if type(encoder) in TEXT_TOWERS:
                encoder = _encoder(model, port).init(next(keys), jnp.zeros((1, 1), jnp.int32))
            else:
                items = jnp.zeros((1, *encoder.item_shape))
                encoder = _encoder(model, port).init(next(keys), items, method="create")
            made.setdefault("generator_encoders", {})[port] = encoder["params"]
    return made


def find_signals(ids: tuple[int, ...], text: TextStream, count: int) -> tuple[jax.Array, jax.Array]:
    """Where the first `count` signals of every row begin.

    Args:
        ids: the tokens of a signal, one after the other.
        text: those that are media or padding, or run on into another packed text, are none.
        count: R; rows may have fewer.

    Returns:
        int32 [B, R], in order, and bool [B, R], which of them are there.
    """
    tokens, segments = jnp.asarray(text.tokens), jnp.asarray(text.segment_ids)
    length, starts = tokens.shape[1], segments > 0
    is_text = starts if text.media_index is None else starts & (jnp.asarray(text.media_index) < 0)
    for step, number in enumerate(ids):
        ahead = lambda x, step=step: jnp.pad(x, ((0, 0), (0, step)))[:, step:]
        starts &= ahead(is_text & (tokens == number)) & (ahead(segments) == segments)
    found = jnp.sort(jnp.where(starts, jnp.arange(length), length), axis=1)[:, :count]
    found = jnp.pad(found, ((0, 0), (0, count - found.shape[1])), constant_values=length)
    return found, found < length


def signal_states(
    model: Any, port: str, text: TextStream, hidden: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """The hidden states of the first `count` signals of every row.

    Args:
        model: says what a signal is, and which states are its.
        port: of the generator.
        text: where signals are.
        hidden: [B, T, D] of `text`, as `forward` gives them.
        count: R.

    Returns:
        [B, R, K, D] of signals of K tokens, and bool [B, R], which of them are there.
    """
    ids = model.config.signal_tokens[port]
    starts, real = find_signals(ids, text, count)
    at = starts[..., None] + jnp.arange(len(ids)) - int(model.config.signal_states == "before")
    at = jnp.clip(at, 0, hidden.shape[1] - 1).reshape(len(hidden), -1, 1)
    states = jnp.take_along_axis(hidden, at, axis=1)
    # States of signals that are not there are those of padding, which may be anything.
    return jnp.where(real[..., None, None], states.reshape(len(hidden), count, len(ids), -1), 0), real


def condition(model: Any, params: Mapping[str, Any], port: str, states: jax.Array) -> Condition:
    """States of signals [B, R, K, D] -> what a generator is conditioned on, of B * R rows, one signal each."""
    variables = {"params": params["output_projectors"][port]}
    if model.config.output_projectors[port].adds_embeddings:
        ids = jnp.asarray(model.config.signal_tokens[port])
        states = states + model.token_embeddings(params, ids[None]).astype(states.dtype)
    return _output_projector(model, port).apply(variables, states.reshape(-1, *states.shape[2:]))


def no_condition(model: Any, params: Mapping[str, Any], port: str) -> Condition:
    """What guidance of a port's generator leads away from, of one row: see `DiffusionConfig.negative_tokens`."""
    negative = model.config.generators[port].negative_tokens
    if negative:
        return text_condition(model, params, port, jnp.asarray(negative)[None])
    variables = {"params": params["output_projectors"][port]}
    states = jnp.zeros((1, len(model.config.signal_tokens[port]), model.config.backbone.width))
    return _output_projector(model, port).apply(variables, states)


def text_condition(model: Any, params: Mapping[str, Any], port: str, tokens: jax.Array) -> Condition:
    """What the generator was conditioned on before it met the LLM: texts int [B, T] through its own encoder.

    Its pooled vector is that behind the encoder's projection, where it has one; of length 1 where it is all that the
    denoiser reads (AudioLDM).
    """
    variables, encoder = {"params": params["generator_encoders"][port]}, model.config.generator_encoders[port]
    tokens = jnp.asarray(tokens)
    mask = tokens != encoder.pad_id if isinstance(encoder, BidirectionalTextConfig) else None
    out = _encoder(model, port).apply(variables, tokens, mask)
    pooled = out.get("embeds", out.get("pooled"))
    if pooled is not None and model.config.generators[port].denoiser.context_width is None:
        pooled = pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
    return Condition(out["last_hidden_state"], mask, pooled)


def alike(one: Condition, other: Condition) -> tuple[Condition, Condition]:
    """Both with what both have, sequences as long as the longer one, so that a program may put them together."""
    both = (one, other)
    shared = [name for name in one.extras or {} if name in (other.extras or {})]

    def beside(part: Condition) -> dict[str, Any]:
        pooled = part.pooled if all(part.pooled is not None for part in both) else None
        return {"pooled": pooled, "extras": {name: part.extras[name] for name in shared} or None}

    if any(part.sequence is None for part in both):
        return tuple(Condition(None, **beside(part)) for part in both)
    lengths = [part.sequence.shape[1] for part in both]
    masked = len(set(lengths)) > 1 or any(part.mask is not None for part in both)

    def kept(part: Condition) -> Condition:
        sequence, rows, length = part.sequence, part.sequence.shape[0], part.sequence.shape[1]
        more = ((0, 0), (0, max(lengths) - length))
        mask = None
        if masked:
            mask = jnp.ones((rows, length), bool) if part.mask is None else part.mask
            mask = jnp.pad(mask, more)
        return Condition(jnp.pad(sequence, (*more, (0, 0))), mask, **beside(part))

    return kept(one), kept(other)


def generator_features(model: Any, params: Mapping[str, Any], port: str, images: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] as the generator's own encoder takes them -> its features [B, N, C]."""
    variables = {"params": params["generator_encoders"][port]}
    return _encoder(model, port).apply(variables, Media(jnp.asarray(images)[:, None])).values


def retrieval_queries(model: Any, params: Mapping[str, Any], port: str, states: jax.Array) -> jax.Array:
    """States of signals [B, R, K, D] -> what each looks for, float32 [B, R, width] of length 1."""
    variables = {"params": params["generators"][port]}
    asked = generator_of(model, port).apply(variables, condition(model, params, port, states))
    return asked.reshape(*states.shape[:2], -1)


def retrieval_items(model: Any, params: Mapping[str, Any], port: str, items: jax.Array) -> jax.Array:
    """Images [G, H, W, 3] as the generator's own encoder takes them -> float32 [G, width] of length 1.

    Or their features [G, C], where they have been through the encoder. It is not trained with the rest.
    """
    items = jnp.asarray(items)
    if items.ndim > 2:
        items = jax.lax.stop_gradient(_pooled(model, params, port, items))
    return generator_of(model, port).apply({"params": params["generators"][port]}, items, method="embed")


def _pooled(model: Any, params: Mapping[str, Any], port: str, items: jax.Array) -> jax.Array:
    """One vector [G, C] of each item: behind the encoder's projection, or pooled, or the mean of its features."""
    if port not in model.config.generator_encoders:
        raise ValueError(f"port {port!r} has no encoder in generator_encoders: give features [G, C], not images")
    variables = {"params": params["generator_encoders"][port]}
    out = _encoder(model, port).apply(variables, items, method="run")
    vector = out.get("embeds", out.get("pooled"))
    if vector is None:
        features = out["last_hidden_state"]
        vector = features.reshape(len(items), -1, features.shape[-1]).mean(axis=1)
    return vector.reshape(len(items), -1)


def decision_logits(model: Any, params: Mapping[str, Any], port: str, states: jax.Array) -> jax.Array:
    """States of signals [B, R, K, D] -> float32 logits [B, R, choices]."""
    variables = {"params": params["generators"][port]}
    logits = generator_of(model, port).apply(variables, condition(model, params, port, states))
    return logits.reshape(*states.shape[:2], -1)


def decide(model: Any, params: Mapping[str, Any], port: str, states: jax.Array) -> jax.Array:
    """States of signals [B, R, K, D] -> probabilities float32 [B, R, choices], see `mmjax.generators.decision`."""
    return jax.nn.softmax(decision_logits(model, params, port, states), axis=-1)


def draw_masks(model: Any, params: Mapping[str, Any], port: str, states: jax.Array, features: jax.Array) -> Masks:
    """One mask of each signal (Lai et al., 2024, "LISA").

    Args:
        model: with a mask decoder at the port.
        params: its.
        port: of the masks.
        states: [B, R, K, D], from `signal_states`.
        features: [B, N, C] of the images, from `generator_features`.

    Returns:
        logits float32 [B, R, h, w], above 0 inside, of images padded to squares; iou [B, R].
    """
    sequence = condition(model, params, port, states).sequence
    sequence = sequence.reshape(*states.shape[:2], *sequence.shape[1:])
    variables = {"params": params["generators"][port]}
    found = generator_of(model, port).apply(variables, features, embeddings=sequence, multimask=False)
    return Masks(found.logits[:, :, 0], found.iou[:, :, 0])


def draw_media(
    model: Any,
    params: Mapping[str, Any],
    port: str,
    states: jax.Array,
    steps: Steps,
    scale: jax.Array | float | None,
    keys: jax.Array,
) -> jax.Array:
    """What each signal asks for: [B, R, ...] of images or frames from 0 to 1, or sounds from -1 to 1.

    Args:
        model: with a diffusion generator at the port.
        params: its.
        port: of the generator.
        states: [B, R, K, D], from `signal_states`.
        steps: the sampler's table.
        scale: of classifier-free guidance; at 1 there is none, and None, which is told before anything is compiled,
            saves half the work.
        keys: random keys [B, R], each signal's own, of its first noise and of samplers that add some.
    """
    rows, generator = states.shape[0] * states.shape[1], model.config.generators[port]
    asked, without = condition(model, params, port, states), None
    if scale is not None:
        asked, without = alike(asked, no_condition(model, params, port))
        without = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])), without)
    noise, later = signal_noise(keys.reshape(-1), generator.latent_shape)
    drawn = draw(generator_of(model, port), params["generators"][port], asked, without, steps, scale, noise, later)
    return drawn.reshape(*states.shape[:2], *drawn.shape[1:])


def signal_noise(keys: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Normal noise [n, *shape] and keys [n] for what is drawn later, of keys [n]."""
    both = jax.vmap(jax.random.split)(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(both[:, 0]), both[:, 1]
