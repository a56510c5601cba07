"""The loss of a model that writes signals: next tokens, and what the generators make of the signals.

Lai et al., 2024, "LISA" (masks); Koh et al., 2023, "GILL", Zheng et al., 2023, "MiniGPT-5", and Wu et al., 2024,
"NExT-GPT" (latent diffusion, alignment with the generator's own text encoder); Koh et al., 2023, "FROMAGe" (retrieval).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Batch, Condition
from mmjax.generators.decision import DecisionConfig
from mmjax.generators.diffusion import DiffusionConfig, denoising_loss, draw_noise
from mmjax.generators.mask_decoder import MaskDecoderConfig
from mmjax.generators.next_embedding import NextEmbeddingConfig
from mmjax.generators.retrieval import RetrievalConfig, contrastive_loss
from mmjax.nn.resize import resize
from mmjax.signals import (
    alike,
    condition,
    decision_logits,
    draw_masks,
    generator_features,
    generator_of,
    no_condition,
    retrieval_items,
    retrieval_queries,
    signal_states,
    text_condition,
)
from mmjax.train.losses import next_token_loss, text_loss
from mmjax.train.mask_losses import BCE_WEIGHT, DICE_WEIGHT, mask_loss
from mmjax.train.prompt_loss import PromptLoss, prompted_port


@dataclasses.dataclass(frozen=True)
class SignalLoss:
    """text * mean of next-token losses, and each generator's own means times their weights.

    `batch.targets[port]` is a mapping of arrays, one row for a row of text; "weights" [B, R] is 0 for padding, where R
    is how many signals of a row count. A port that is not there, as one without targets in the whole batch is not,
    costs nothing. Of a port of masks see `mask_means`, of diffusion `diffusion_means`, of retrieval `retrieval_means`,
    of decisions `decision_means`.

    All are means over the whole batch. The step divides sums by one weight, that of the text, so the generators' means
    are handed over times that weight: micro-batches count by their text, not by what they draw.

    Where every port's targets hold "states" [B, R, K, D], those of its signals, the LLM is frozen and has read the
    texts already (`mmjax.train.features.cache_predictions`): nothing is read, no token is predicted, a row weighs 1.

    Attributes:
        text: weight of the text.
        bce, dice: of masks; LISA's unless told otherwise.
        diffusion: of a denoiser's error.
        regression: of the squared difference between an embedding of media and what the LLM says it will be.
        alignment: of the squared difference between a condition and the generator's own reading of the caption.
        retrieval: of the contrast between a signal's own image and those of the other signals.
        decision: of the cross-entropy of what is done about a signal.
        drop: share of the signals that a denoiser is trained without, for classifier-free guidance (Ho & Salimans,
            2022).
    """

    text: float = 1.0
    bce: float = BCE_WEIGHT
    dice: float = DICE_WEIGHT
    diffusion: float = 1.0
    regression: float = 1.0
    alignment: float = 1.0
    retrieval: float = 1.0
    decision: float = 1.0
    drop: float = 0.0

    def __post_init__(self):
        if not 0 <= self.drop < 1:
            raise ConfigError(f"loss_weights.drop is a share, at least 0 and below 1; got {self.drop}")

    def __call__(
        self, model: Any, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(sum, aux) as `mmjax.train.losses` has it; aux has also, times "weight", every mean by its name."""
        batch = model.with_codes(params, batch)
        text, media = batch.texts[model.config.streams[-1]], {}
        if is_read(batch):
            hidden, total = None, jnp.zeros(())
            aux = {"weight": jnp.asarray(text.tokens.shape[0], jnp.float32)}
        else:
            media = model.encode_media(params, batch.media, rng)
            hidden = model.forward(params, batch.texts, media, batch.media_owner)
            total, aux = text_loss(model, params, text, hidden)
            total = self.text * total
        for number, (port, target) in enumerate(sorted((batch.targets or {}).items())):
            check_choice("target port", port, tuple(model.config.generators))
            key = None if rng is None else jax.random.fold_in(rng, 1000 + number)
            means = MEANS[type(model.config.generators[port])]
            for name, mean in means(model, params, port, text, hidden, target, key, self).items():
                scaled = mean * aux["weight"]
                total = total + getattr(self, name) * scaled
                aux[name] = aux.get(name, 0.0) + scaled
        for port, generator in model.config.generators.items():
            if isinstance(generator, NextEmbeddingConfig) and self.regression and generator.of in media:
                embedded = model.embed(params, text, media, batch.media_owner)
                scaled = regression_mean(model, params, port, text, hidden, embedded, media) * aux["weight"]
                total = total + self.regression * scaled
                aux["regression"] = aux.get("regression", 0.0) + scaled
        return total, aux


def is_read(batch: Batch) -> bool:
    """Whether a batch holds the states of its signals, so that its texts need not be read."""
    targets = (batch.targets or {}).values()
    return bool(targets) and all("states" in target for target in targets)


def _states_of(model, port, text, hidden, target, count) -> tuple[jax.Array, jax.Array]:
    """The states of a port's signals [B, R, K, D] and which are there, bool [B, R]."""
    if "states" not in target:
        return signal_states(model, port, text, hidden, count)
    states = jnp.asarray(target["states"])
    return states, jnp.ones(states.shape[:2], bool)


def regression_mean(model, params, port, text, hidden, embedded, media) -> jax.Array:
    """Mean over all media tokens of the port that `NextEmbeddingConfig.of` names (Sun et al., 2023, "Emu").

    Each is said by the hidden state before it, in the same text. What is to be said is taken as it is: it has no
    gradient, or the projector would learn to make embeddings that are easy to say.
    """
    port_in = model.config.generators[port].of
    sizes = {name: item.values.shape[1] for name, item in media.items() if name not in model.config.inside}
    before = [name for name in model.config.encoders if name in sizes]
    first = sum(sizes[name] for name in before[: before.index(port_in)])
    index, segments = jnp.asarray(text.media_index), jnp.asarray(text.segment_ids)
    wanted = (index >= first) & (index < first + sizes[port_in])
    wanted = (wanted & (segments > 0))[:, 1:] & (segments[:, 1:] == segments[:, :-1])
    said = condition(model, params, port, hidden[:, :-1, None]).sequence.reshape(*hidden[:, 1:].shape[:2], -1)
    error = jnp.square(said.astype(jnp.float32) - jax.lax.stop_gradient(embedded[:, 1:]).astype(jnp.float32))
    total = jnp.sum(jnp.where(wanted, jnp.mean(error, axis=-1), 0.0))
    return total / jnp.maximum(jnp.sum(wanted), 1)


def mask_means(model, params, port, text, hidden, target, rng=None, options=None) -> dict[str, jax.Array]:
    """Means of both losses over the masks of a batch, "bce" and "dice".

    The target has "images" float [B, H, W, 3], as the generator's encoder takes them; "masks" [B, R, h, w], one for
    each signal of a row in order, of the image padded to a square; "pixels" [B, h, w], not 0 where there is image.
    """
    masks = jnp.asarray(target["masks"], jnp.float32)
    states, real = signal_states(model, port, text, hidden, masks.shape[1])
    features = jax.lax.stop_gradient(generator_features(model, params, port, target["images"]))
    logits = draw_masks(model, params, port, states, features).logits
    if logits.shape[2:] != masks.shape[2:]:
        logits = resize(logits[..., None], masks.shape[2:], "bilinear")[..., 0]
    pixels = jnp.broadcast_to(jnp.asarray(target["pixels"])[:, None], masks.shape)
    weights = jnp.where(real, jnp.asarray(target["weights"], jnp.float32), 0.0)
    _, sums = mask_loss(logits, masks, weights, pixels)
    count = jnp.maximum(sums["weight"], 1e-8)
    return {name: sums[name] / count for name in ("bce", "dice")}


def diffusion_means(model, params, port, text, hidden, target, rng, options: SignalLoss) -> dict[str, jax.Array]:
    """Means over the signals of a batch: "diffusion" of the denoiser's error, "alignment" where there are captions.

    The target has "latents" [B, R, ..., h, w, C] as the denoiser knows them, or "media" [B, R, ...], see
    `Diffusion.encode`, which the frozen autoencoder encodes; one for each signal of a row in order. "captions" int
    [B, R, T] are texts for the generator's own encoder. A mean whose arrays are not there, or whose weight is 0, is not
    computed.

    Without `rng` (evaluation) the noise is always the same and nothing is dropped.
    """
    weights = jnp.asarray(target["weights"], jnp.float32)
    states, real = _states_of(model, port, text, hidden, target, weights.shape[1])
    weights = jnp.where(real, weights, 0.0).reshape(-1)
    count, out = jnp.maximum(weights.sum(), 1e-8), {}
    asked = condition(model, params, port, states)
    if "captions" in target and options.alignment:
        captions = jnp.asarray(target["captions"])
        known = jax.lax.stop_gradient(text_condition(model, params, port, captions.reshape(-1, captions.shape[-1])))
        out["alignment"] = jnp.sum(weights * _difference(model, port, asked, known)) / count
    if options.diffusion and ("latents" in target or "media" in target):
        generator, own = generator_of(model, port), params["generators"][port]
        if "latents" in target:
            latents = jnp.asarray(target["latents"])
            latents = latents.reshape(-1, *latents.shape[2:])
        else:
            media = jnp.asarray(target["media"])
            latents = generator.apply({"params": own}, media.reshape(-1, *media.shape[2:]), method="encode")
            latents = jax.lax.stop_gradient(latents)
        first, second = jax.random.split(jax.random.key(0) if rng is None else rng)
        noise, times = draw_noise(generator.config, first, latents.shape)
        if rng is not None and options.drop:
            asked, without = alike(asked, no_condition(model, params, port))
            dropped = jax.random.bernoulli(second, options.drop, (len(latents),))
            asked = jax.tree.map(lambda a, b: jnp.where(_beside(dropped, a), b, a), asked, without)
        errors = denoising_loss(generator, own, latents, asked, noise, times)
        out["diffusion"] = jnp.sum(weights * errors) / count
    return out


def retrieval_means(model, params, port, text, hidden, target, rng=None, options=None) -> dict[str, jax.Array]:
    """The mean over the signals of a batch of InfoNCE in both directions, "retrieval" (Koh et al., 2023, "FROMAGe").

    The target has "features" [B, R, C], or "images" [B, R, H, W, 3] for the generator's own encoder, which is not
    trained; one for each signal of a row in order. Every signal is told apart from all others of the batch, on
    whatever device they are; of micro-batches each is a batch of its own.
    """
    weights = jnp.asarray(target["weights"], jnp.float32)
    states, real = signal_states(model, port, text, hidden, weights.shape[1])
    weights = jnp.where(real, weights, 0.0).reshape(-1)
    items = jnp.asarray(target["features"] if "features" in target else target["images"])
    found = retrieval_items(model, params, port, items.reshape(-1, *items.shape[2:]))
    asked = retrieval_queries(model, params, port, states).reshape(found.shape)
    variables = {"params": params["generators"][port]}
    logits = generator_of(model, port).apply(variables, asked, found, method="logits")
    return {"retrieval": contrastive_loss(logits, weights)}


def decision_means(model, params, port, text, hidden, target, rng=None, options=None) -> dict[str, jax.Array]:
    """The mean over the signals of a batch of the cross-entropy of "choice" int [B, R], "decision".

    Choices below 0 are none: nobody said what should be done.
    """
    choice = jnp.asarray(target["choice"])
    states, real = signal_states(model, port, text, hidden, choice.shape[1])
    weights = jnp.where(real & (choice >= 0), jnp.asarray(target["weights"], jnp.float32), 0.0)
    log_p = jax.nn.log_softmax(decision_logits(model, params, port, states), axis=-1)
    loss = -jnp.take_along_axis(log_p, jnp.maximum(choice, 0)[..., None], axis=-1)[..., 0]
    return {"decision": jnp.sum(weights * loss) / jnp.maximum(jnp.sum(weights), 1e-8)}


def _difference(model: Any, port: str, asked: Condition, known: Condition) -> jax.Array:
    """float32 [B], mean squared difference of what the denoiser reads: tokens, or the pooled vector."""
    name = "sequence" if model.config.generators[port].denoiser.context_width else "pooled"
    one, other = getattr(asked, name), getattr(known, name)
    if one is None or one.shape[1:] != other.shape[1:]:
        found = None if one is None else one.shape[1:]
        raise ConfigError(
            f"alignment of port {port!r}: the output projector's {name} is {found}, the generator's encoder gives "
            f"{other.shape[1:]}"
        )
    error = jnp.square(one.astype(jnp.float32) - other.astype(jnp.float32))
    return jnp.mean(error, axis=tuple(range(1, error.ndim)))


def _beside(values: jax.Array, x: jax.Array) -> jax.Array:
    return values.reshape(values.shape + (1,) * (x.ndim - 1))


# The one place where a generator's config meets what it costs.
MEANS = {
    MaskDecoderConfig: mask_means,
    DiffusionConfig: diffusion_means,
    RetrievalConfig: retrieval_means,
    DecisionConfig: decision_means,
}


def loss_of(model: Any, weights: dict[str, float]) -> Any:
    """The loss of a stage: `SignalLoss` with these weights of a model with generators, `PromptLoss` of one with a
    P-Former, else `next_token_loss`.

    Raises:
        ConfigError: a weight that the loss does not have; a P-Former beside generators.
    """
    prompted = prompted_port(model.config)
    if prompted and model.config.generators:
        raise ConfigError(f"projectors.{prompted} is prompted, which is not trained beside generators")
    kind = SignalLoss if model.config.generators else PromptLoss if prompted else None
    names = tuple(field.name for field in dataclasses.fields(kind)) if kind else ()
    for name in weights:
        check_choice("loss_weights", name, names)
    return kind(**weights) if kind else next_token_loss
