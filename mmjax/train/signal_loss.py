"""The loss of a model that also draws masks: next tokens, and masks at its signals (Lai et al., 2024, "LISA")."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import check_choice
from mmjax.data.contracts import Batch
from mmjax.nn.resize import resize
from mmjax.signals import draw_masks, generator_features, signal_states
from mmjax.train.losses import next_token_loss, text_loss
from mmjax.train.mask_losses import BCE_WEIGHT, DICE_WEIGHT, mask_loss


@dataclasses.dataclass(frozen=True)
class SignalLoss:
    """text * mean of next-token losses + bce * mean of masks' cross-entropy + dice * mean of masks' DICE.

    `batch.targets[port]` of a port of masks is a mapping of arrays: "images" float [B, H, W, 3], as the generator's
    encoder takes them; "masks" [B, R, h, w], one for each signal of a row in order, of the image padded to a square;
    "weights" [B, R], 0 for padding; "pixels" [B, h, w], not 0 where there is image. A port that is not there, as one
    without masks in the whole batch is not, costs nothing.

    All three are means over the whole batch. The step divides sums by one weight, that of the text, so the masks' mean
    is handed over times that weight: micro-batches count by their text, not by their masks.

    Attributes:
        text, bce, dice: weights; LISA's unless told otherwise.
    """

    text: float = 1.0
    bce: float = BCE_WEIGHT
    dice: float = DICE_WEIGHT

    def __call__(
        self, model: Any, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(sum, aux) as `mmjax.train.losses` has it; aux has also, times "weight", the means "bce" and "dice"."""
        media = model.encode_media(params, batch.media, rng)
        hidden = model.forward(params, batch.texts, media, batch.media_owner)
        text = batch.texts[model.config.streams[-1]]
        total, aux = text_loss(model, params, text, hidden)
        total = self.text * total
        for port, target in (batch.targets or {}).items():
            check_choice("target port", port, tuple(model.config.generators))
            means = mask_means(model, params, port, text, hidden, target)
            for name, weight in (("bce", self.bce), ("dice", self.dice)):
                scaled = means[name] * aux["weight"]
                total = total + weight * scaled
                aux[name] = aux.get(name, 0.0) + scaled
        return total, aux


def mask_means(model: Any, params: Any, port: str, text: Any, hidden: jax.Array, target: Any) -> dict[str, jax.Array]:
    """Means of both losses over the masks of a batch, "bce" and "dice"; see `SignalLoss`."""
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


def loss_of(model: Any, weights: dict[str, float]) -> Any:
    """The loss of a stage: `SignalLoss` with these weights of a model with generators, else `next_token_loss`.

    Raises:
        ConfigError: a weight that the loss does not have.
    """
    names = tuple(field.name for field in dataclasses.fields(SignalLoss)) if model.config.generators else ()
    for name in weights:
        check_choice("loss_weights", name, names)
    return SignalLoss(**weights) if model.config.generators else next_token_loss
