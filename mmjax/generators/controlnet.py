"""What a UNet is told by a picture: edges, depth, a pose (Zhang et al., 2023, "ControlNet").

A copy of the UNet's way down reads the noisy latent with the picture added to it; what it makes of each map is added to
the UNet's own.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.unet import UNet, UNetConfig
from mmjax.nn.full_conv import Conv


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """Sizes and options: those of the UNet that it was copied from (what its way up has is not read), and more.

    Attributes:
        picture_channels: of the picture.
        picture_widths: channels of the convolutions that bring it to the latent's sides; each but the first halves
            them.
        blue_first: whether the picture's colours are read the other way round.
    """

    picture_channels: int = 3
    picture_widths: tuple[int, ...] = (16, 32, 96, 256)
    blue_first: bool = False

    kind: ClassVar[str] = "controlnet"

    def __post_init__(self):
        super().__post_init__()
        if not self.picture_widths:
            raise ConfigError("controlnet.picture_widths is empty; there must be at least one")

    @property
    def downsampling(self) -> int:
        """Pixels along a side of the picture for one place of the latent."""
        return 2 ** (len(self.picture_widths) - 1)


class ControlNet(UNet):
    """(noisy latent, time, condition, picture) -> what is added to a UNet's maps.

    Parameters of the UNet's way down and middle; picture_in, picture_{number}, picture_out; out_{number}, one for each
    map on the way down, and out_middle.

    Attributes:
        config: a ControlNetConfig.
    """

    config: ControlNetConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        times: jax.Array,
        condition: Condition | None = None,
        picture: jax.Array | None = None,
        scale: jax.Array | float = 1.0,
        guess: jax.Array | bool = False,
    ) -> tuple[jax.Array, ...]:
        """The residuals of a UNet's maps on the way down, the first one first, and of its middle.

        Args:
            x, times, condition: as the UNet reads them.
            picture: float [B, H, W, channels] from 0 to 1, `downsampling` times as large as the latent.
            scale: what the residuals are multiplied with.
            guess: whether the first residual is made ten times as small, and the others less and less so up to the
                middle, for pictures whose prompt says little (the published "guess mode").

        Raises:
            ValueError: no picture, or one of another size; see `UNet`.
        """
        c = self.config
        wanted = (x.shape[0], *(side * c.downsampling for side in x.shape[1:3]), c.picture_channels)
        if picture is None or picture.shape != wanted:
            raise ValueError(f"the picture is {None if picture is None else picture.shape}; wanted {wanted}")
        hint = self._conv(c.picture_widths[0], "picture_in")(picture[..., ::-1] if c.blue_first else picture)
        for number, (before, width) in enumerate(zip(c.picture_widths, c.picture_widths[1:], strict=False)):
            hint = self._conv(before, f"picture_{2 * number}")(jax.nn.silu(hint))
            hint = self._conv(width, f"picture_{2 * number + 1}", stride=2)(jax.nn.silu(hint))
        hint = self._conv(c.widths[0], "picture_out")(jax.nn.silu(hint))
        middle, _, maps = self._half(x, times, Condition(None) if condition is None else condition, hint)
        names = [f"out_{number}" for number in range(len(maps))] + ["out_middle"]
        scales = scale * jnp.where(guess, jnp.logspace(-1, 0, len(names)), 1.0)
        return tuple(
            each.astype(self.dtype) * Conv(found.shape[-1], 1, dtype=self.dtype, name=name)(found)
            for each, name, found in zip(scales, names, [*maps, middle], strict=True)
        )

    def _conv(self, width: int, name: str, stride: int = 1) -> Conv:
        return Conv(width, stride=stride, padding=1, dtype=self.dtype, name=name)

    def create(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Touches every parameter once: what `init` runs. x [B, h, w, in]."""
        sides = (side * self.config.downsampling for side in x.shape[1:3])
        picture = jnp.zeros((x.shape[0], *sides, self.config.picture_channels))
        return self(x, jnp.zeros(x.shape[0]), self._nothing(x.shape[0]), picture)
