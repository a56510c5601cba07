"""Clouds of points seen from several sides as depth maps, which any image encoder takes.

Zhang et al., 2022, "PointCLIP" (depth maps in perspective); Zhu et al., 2023, "PointCLIP V2" (points made denser and
smoother before they are looked at).
"""

import dataclasses
import math

import numpy as np

from mmjax.data.point_files import PointError

# Front, right, back, left, top and bottom: (turn about the upright axis, tilt), in degrees.
SIX_VIEWS = ((0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (270.0, 0.0), (0.0, 90.0), (0.0, -90.0))


@dataclasses.dataclass(frozen=True)
class DepthProjection:
    """The recipe from a cloud in the unit sphere to depth maps.

    Attributes:
        image_size: pixels of a side.
        views: (turn about the y axis, tilt about the x axis) of each view, in degrees.
        distance: of the eye from the middle, above 1; None looks from infinitely far (no perspective).
        far: brightness of the farthest possible point; the nearest possible has 1, the background 0.
        spread: each pixel takes the brightest of those up to this many pixels away.
        smoothing: standard deviation in pixels of the Gaussian that blurs the map, 0 for none.
    """

    image_size: int = 224
    views: tuple[tuple[float, float], ...] = SIX_VIEWS
    distance: float | None = 3.0
    far: float = 0.2
    spread: int = 1
    smoothing: float = 0.0

    def __post_init__(self):
        if self.image_size < 2:
            raise PointError(f"image_size must be at least 2, got {self.image_size}")
        if not self.views:
            raise PointError("views must name at least one")
        if self.distance is not None and self.distance <= 1:
            raise PointError(f"distance must be above 1, outside the unit sphere, got {self.distance}")
        if not 0 <= self.far <= 1 or self.spread < 0 or self.smoothing < 0:
            raise PointError(
                f"far must lie in 0..1, spread and smoothing must be at least 0, got {self.far}, {self.spread}, "
                f"{self.smoothing}"
            )

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of each view, (H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def __call__(self, points: np.ndarray, name: str = "cloud") -> np.ndarray:
        """Points [N, 3 or more] in the unit sphere -> float32 [views, H, W, 3] in 0..1, its channels alike.

        Points that are no numbers (padding) are left out.

        Raises:
            PointError: another shape, no points, or points outside the unit sphere.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] < 3:
            raise PointError(f"{name}: expected points [N, 3 or more], got {list(points.shape)}")
        xyz = points[np.isfinite(points).all(1), :3]
        if not len(xyz):
            raise PointError(f"{name}: no points")
        outside = int((np.linalg.norm(xyz, axis=1) > 1 + 1e-4).sum())
        if outside:
            raise PointError(f"{name}: {outside} of {len(xyz)} points lie outside the unit sphere: normalise them")
        maps = np.stack([self._smooth(self._spread(self._view(xyz @ rotation(*view).T))) for view in self.views])
        return np.repeat(maps[..., None], 3, axis=-1).astype(np.float32)

    def _view(self, xyz: np.ndarray) -> np.ndarray:
        """Points [N, 3], seen along -z -> brightness [H, W] of the nearest in each pixel."""
        if self.distance is None:
            across = xyz[:, :2]
        else:
            # The sphere just fills the picture: the tangent from the eye has the slope 1 / sqrt(distance² - 1).
            across = xyz[:, :2] / (self.distance - xyz[:, 2:]) * math.sqrt(self.distance**2 - 1)
        across = np.clip((across + 1) / 2 * (self.image_size - 1), 0, self.image_size - 1)
        column, row = np.rint(across[:, 0]).astype(int), self.image_size - 1 - np.rint(across[:, 1]).astype(int)
        bright = self.far + (1 - self.far) * (xyz[:, 2] + 1) / 2
        image = np.zeros((self.image_size, self.image_size))
        np.maximum.at(image, (row, column), bright)
        return image

    def _spread(self, image: np.ndarray) -> np.ndarray:
        padded = np.pad(image, self.spread)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * self.spread + 1,) * 2)
        return windows.max((2, 3))

    def _smooth(self, image: np.ndarray) -> np.ndarray:
        if not self.smoothing:
            return image
        reach = math.ceil(3 * self.smoothing)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / self.smoothing) ** 2)
        weights /= weights.sum()
        for _ in range(2):
            padded = np.pad(image, ((reach, reach), (0, 0)))
            image = np.einsum("hwk,k->hw", np.lib.stride_tricks.sliding_window_view(padded, len(weights), 0), weights).T
        return image


def rotation(turn: float, tilt: float) -> np.ndarray:
    """float64 [3, 3]: a turn about the y axis, then a tilt about the x axis, in degrees."""
    turn, tilt = math.radians(turn), math.radians(tilt)
    about_y = [[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]]
    about_x = [[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]]
    return np.array(about_x) @ np.array(about_y)
