"""The loss of a model that writes signals: next tokens, and what the generators make of the signals.

Lai et al., 2024, "LISA" (masks); Koh et al., 2023, "GILL", Zheng et al., 2023, "MiniGPT-5", and Wu et al., 2024,
"NExT-GPT" (latent diffusion, alignment with the generator's own text encoder).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Batch, Condition
from mmjax.generators.diffusion import DiffusionConfig, denoising_loss, draw_noise
from mmjax.generators.mask_decoder import MaskDecoderConfig
from mmjax.nn.resize import resize
from mmjax.signals import (
    alike,
    condition,
    draw_masks,
    generator_features,
    generator_of,
    no_condition,
    signal_states,
    text_condition,
)
from mmjax.train.losses import next_token_loss, text_loss
from mmjax.train.mask_losses import BCE_WEIGHT, DICE_WEIGHT, mask_loss


@dataclasses.dataclass(frozen=True)
class SignalLoss:
    """text * mean of next-token losses, and each generator's own means times their weights.

    `batch.targets[port]` is a mapping of arrays, one row for a row of text; "weights" [B, R] is 0 for padding, where R
    is how many signals of a row count. A port that is not there, as one without targets in the whole batch is not,
    costs nothing. Of a port of masks see `mask_means`, of diffusion `diffusion_means`.

    All are means over the whole batch. The step divides sums by one weight, that of the text, so the generators' means
    are handed over times that weight: micro-batches count by their text, not by what they draw.

    Attributes:
        text: weight of the text.
        bce, dice: of masks; LISA's unless told otherwise.
        diffusion: of a denoiser's error.
        alignment: of the squared difference between a condition and the generator's own reading of the caption.
        drop: share of the signals that a denoiser is trained without, for classifier-free guidance (Ho & Salimans,
            2022).
    """

    text: float = 1.0
    bce: float = BCE_WEIGHT
    dice: float = DICE_WEIGHT
    diffusion: float = 1.0
    alignment: float = 1.0
    drop: float = 0.0

    def __post_init__(self):
        if not 0 <= self.drop < 1:
            raise ConfigError(f"loss_weights.drop is a share, at least 0 and below 1; got {self.drop}")

    def __call__(
        self, model: Any, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(sum, aux) as `mmjax.train.losses` has it; aux has also, times "weight", every mean by its name."""
        media = model.encode_media(params, batch.media, rng)
        hidden = model.forward(params, batch.texts, media, batch.media_owner)
        text = batch.texts[model.config.streams[-1]]
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
        return total, aux


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
    states, real = signal_states(model, port, text, hidden, weights.shape[1])
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
MEANS = {MaskDecoderConfig: mask_means, DiffusionConfig: diffusion_means}


def loss_of(model: Any, weights: dict[str, float]) -> Any:
    """The loss of a stage: `SignalLoss` with these weights of a model with generators, else `next_token_loss`.

    Raises:
        ConfigError: a weight that the loss does not have.
    """
    names = tuple(field.name for field in dataclasses.fields(SignalLoss)) if model.config.generators else ()
    for name in weights:
        check_choice("loss_weights", name, names)
    return SignalLoss(**weights) if model.config.generators else next_token_loss
