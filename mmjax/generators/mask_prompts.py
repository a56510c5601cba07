"""What tells SAM's mask decoder which object is meant: points, boxes, rough masks.

Kirillov et al., 2023, "Segment anything"; Tancik et al., 2020, "Fourier features let networks learn high frequency
functions in low dimensional domains". R prompts of an image, each of which becomes masks of its own.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.full_conv import Conv
from mmjax.nn.mlp import ACTIVATIONS
from mmjax.nn.norms import LayerNorm

# Labels of points: outside the object, inside, no point (a place to be filled), padding.
OUTSIDE, INSIDE, NO_POINT, PADDING = 0, 1, -1, -10


class PromptEncoder(nn.Module):
    """Prompts to embeddings of width D.

    Parameters positions [2, D / 2], kinds [4, D] (points outside and inside, corners upper left and lower right),
    no_point [D], no_mask [D]; mask_{1, 2, 3} and mask_{1, 2}_norm.

    Attributes:
        width: D.
        image_size: pixels of a side, in which points and boxes are counted.
        grid_size: places of a side of the image's map; rough masks are four times as large.
        mask_width: channels on the way from a rough mask to D.
        activation, norm_eps: on that way.
        dtype: compute dtype.
    """

    width: int
    image_size: int
    grid_size: int
    mask_width: int
    activation: str
    norm_eps: float
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "feature"))
        self.positions = self.param("positions", init, (2, self.width // 2))

        def leaf(name, *shape):
            axes = (None, "embed")[-len(shape) :]
            return self.param(name, nn.with_logical_partitioning(nn.initializers.normal(1.0), axes), shape)

        self.kinds = leaf("kinds", 4, self.width)
        self.no_point, self.no_mask = leaf("no_point", self.width), leaf("no_mask", self.width)
        conv = lambda features, size: Conv(features, size, size, dtype=self.dtype)
        self.mask_1, self.mask_2 = conv(self.mask_width // 4, 2), conv(self.mask_width, 2)
        self.mask_3 = conv(self.width, 1)
        norm = lambda: LayerNorm(self.norm_eps, self.dtype)
        self.mask_1_norm, self.mask_2_norm = norm(), norm()

    def _positions(self, places: jax.Array) -> jax.Array:
        """Places [..., 2] (x, y), as shares of the image's sides -> float32 [..., D]."""
        angles = jnp.matmul(2 * places - 1, self.positions.astype(jnp.float32), precision="highest") * (2 * math.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def grid(self) -> jax.Array:
        """Positions of the places of the image's map, [g, g, D]."""
        middle = (jnp.arange(self.grid_size, dtype=jnp.float32) + 0.5) / self.grid_size
        places = jnp.stack(jnp.meshgrid(middle, middle), axis=-1)
        return self._positions(places).astype(self.dtype)

    def sparse(
        self, points: jax.Array | None = None, labels: jax.Array | None = None, boxes: jax.Array | None = None
    ) -> jax.Array | None:
        """Points and boxes as tokens.

        Args:
            points: float [B, R, P, 2], x and y in pixels.
            labels: int [B, R, P], see OUTSIDE, INSIDE, NO_POINT, PADDING; None: all are INSIDE.
            boxes: float [B, R, 4], x1, y1, x2, y2 in pixels.

        Returns:
            [B, R, K, D], or None without points and boxes. Points without a box have one token NO_POINT more.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        tokens = []
        if points is None and labels is not None:
            raise ValueError("labels of points need points")
        if points is not None:
            labels = jnp.full(points.shape[:-1], INSIDE) if labels is None else jnp.asarray(labels)
            if points.ndim != 4 or points.shape[-1] != 2 or labels.shape != points.shape[:-1]:
                raise ValueError(f"points are {points.shape}, labels {labels.shape}; wanted [B, R, P, 2] and [B, R, P]")
            if boxes is None:
                points = jnp.pad(points, ((0, 0), (0, 0), (0, 1), (0, 0)))
                labels = jnp.pad(labels, ((0, 0), (0, 0), (0, 1)), constant_values=NO_POINT)
            tokens.append(self._points(points, labels[..., None]))
        if boxes is not None:
            if boxes.ndim != 3 or boxes.shape[-1] != 4 or (tokens and tokens[0].shape[:2] != boxes.shape[:2]):
                beside = f" beside points {points.shape}" if tokens else ""
                raise ValueError(f"boxes are {boxes.shape}{beside}; wanted [B, R, 4]")
            corners = (boxes.reshape(*boxes.shape[:2], 2, 2).astype(jnp.float32) + 0.5) / self.image_size
            tokens.append(self._positions(corners) + self.kinds[2:])
        return jnp.concatenate(tokens, axis=2).astype(self.dtype) if tokens else None

    def _points(self, points: jax.Array, labels: jax.Array) -> jax.Array:
        x = self._positions((points.astype(jnp.float32) + 0.5) / self.image_size)
        x = jnp.where(labels == NO_POINT, self.no_point, x)
        x = jnp.where(labels == PADDING, 0.0, x)
        for label in (OUTSIDE, INSIDE):
            x = jnp.where(labels == label, x + self.kinds[label], x)
        return x

    def dense(self, masks: jax.Array | None = None) -> jax.Array:
        """What is added to the image's map.

        Args:
            masks: float [B, R or 1, 4 g, 4 g], logits of rough masks, one of each prompt or one of all.

        Returns:
            [B, R or 1, g, g, D]; without masks [1, 1, 1, 1, D].

        Raises:
            ValueError: masks of another size.
        """
        if masks is None and not self.is_initializing():
            return self.no_mask.astype(self.dtype)[None, None, None, None]
        side = 4 * self.grid_size
        masks = jnp.zeros((1, 1, side, side)) if masks is None else masks
        if masks.ndim != 4 or masks.shape[2:] != (side, side):
            raise ValueError(f"masks are {masks.shape}; wanted [B, R, {side}, {side}]")
        act = ACTIVATIONS[self.activation]
        x = masks.reshape(-1, side, side, 1)
        x = act(self.mask_1_norm(self.mask_1(x)))
        x = act(self.mask_2_norm(self.mask_2(x)))
        return self.mask_3(x).reshape(*masks.shape[:2], self.grid_size, self.grid_size, self.width)
