"""How much noise stands in a latent at each time of training, and what a denoiser is trained to predict.

x_t = alpha_t x_0 + sigma_t noise, with alpha_t^2 + sigma_t^2 = 1 (Ho et al., 2020) or alpha_t + sigma_t = 1 (flow
matching; Lipman et al., 2023, Liu et al., 2023).
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError, check_choice

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "sample", "v", "flow")


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """The noise of training.

    Attributes:
        train_steps: times 0 ... train_steps - 1; for "flow" time is train_steps * sigma.
        betas: how the variance added at each time goes from `beta_start` to `beta_end`: evenly ("linear"), evenly in
            its root ("scaled_linear", Stable Diffusion), or as a squared cosine of what is left ("squaredcos_cap_v2").
        beta_start, beta_end: of the first two.
        zero_snr: whether nothing of x_0 is left at the last time (Lin et al., 2024).
        prediction: of the denoiser: the noise ("epsilon"), x_0 ("sample"), alpha * noise - sigma * x_0 ("v"; Salimans
            & Ho, 2022), or noise - x_0 along a straight line ("flow").
    """

    train_steps: int = 1000
    betas: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_snr: bool = False
    prediction: str = "epsilon"

    kind: ClassVar[str] = "noise"

    def __post_init__(self):
        check_choice("noise.betas", self.betas, BETAS)
        check_choice("noise.prediction", self.prediction, PREDICTIONS)
        if self.train_steps < 1:
            raise ConfigError(f"noise.train_steps must be at least 1, got {self.train_steps}")

    @property
    def flow(self) -> bool:
        """Whether noise comes in along a straight line."""
        return self.prediction == "flow"


@functools.lru_cache(maxsize=32)
def alphas_cumprod(config: NoiseConfig) -> np.ndarray:
    """float64 [train_steps], alpha_t^2: the share of x_0's variance at each time. Not for "flow".

    The products are rounded to float32 one by one: published models were trained, and are sampled, with those.
    """
    steps = config.train_steps
    if config.betas == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, steps, dtype=np.float32)
    elif config.betas == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=np.float32) ** 2
    else:
        left = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - left[1:] / left[:-1], 0.999).astype(np.float32)
    total = np.cumprod(1 - betas, dtype=np.float32)
    if config.zero_snr:
        root = np.sqrt(total)
        total = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        # Taken apart and multiplied up again, as the paper does.
        total = np.cumprod(np.concatenate([total[:1], total[1:] / total[:-1]]), dtype=np.float32)
    return total.astype(np.float64)


def levels(config: NoiseConfig, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma, float32 of the shape of `times`, which are whole ones of training, or for "flow" any."""
    if config.flow:
        sigma = jnp.asarray(times, jnp.float32) / config.train_steps
        return 1 - sigma, sigma
    total = alphas_cumprod(config)
    alpha, sigma = (jnp.asarray(np.sqrt(part), jnp.float32) for part in (total, 1 - total))
    return alpha[times], sigma[times]


def add_noise(config: NoiseConfig, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """x_t [B, ...] of x_0 `clean` and `noise`, both [B, ...], at `times` [B]."""
    alpha, sigma = (_beside(part, clean) for part in levels(config, times))
    return alpha * clean + sigma * noise


def target(config: NoiseConfig, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """What the denoiser should say of x_t [B, ...] at `times` [B]: see `NoiseConfig.prediction`."""
    if config.prediction == "epsilon":
        return noise
    if config.prediction == "sample":
        return clean
    if config.flow:
        return noise - clean
    alpha, sigma = (_beside(part, clean) for part in levels(config, times))
    return alpha * noise - sigma * clean


def _beside(values: jax.Array, x: jax.Array) -> jax.Array:
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))
