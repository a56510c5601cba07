"""What a denoiser's prediction M says of x_0 and of the noise, as weights of X and M."""

import numpy as np

from mmjax.config import ConfigError
from mmjax.generators.schedules.steps import M, X


def clean(prediction: str, alpha: float, sigma: float) -> np.ndarray:
    """x_0 of x = alpha x_0 + sigma noise.

    Raises:
        ConfigError: nothing of x_0 is left, so that a prediction of the noise does not tell.
    """
    if prediction == "sample":
        return M
    if prediction == "v":
        return alpha * X - sigma * M
    if prediction == "flow":
        return X - sigma * M
    if alpha == 0:
        raise ConfigError('noise.zero_snr: at the last time "epsilon" says nothing of x_0; "v" and "sample" do')
    return (X - sigma * M) / alpha


def noise(prediction: str, alpha: float, sigma: float) -> np.ndarray:
    """The noise of x = alpha x_0 + sigma noise."""
    if prediction == "epsilon":
        return M
    if prediction == "v":
        return alpha * M + sigma * X
    if prediction == "flow":
        return X + (1 - sigma) * M
    return (X - alpha * M) / sigma


def clean_of_scaled(prediction: str, sigma: float) -> np.ndarray:
    """x_0 of x = x_0 + sigma noise, which the denoiser saw divided by sqrt(sigma^2 + 1)."""
    root = np.sqrt(sigma**2 + 1)
    if prediction == "epsilon":
        return X - sigma * M
    if prediction == "v":
        return X / root**2 - sigma / root * M
    return M
