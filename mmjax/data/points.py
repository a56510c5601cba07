"""Point clouds: opening them, and turning them into the arrays that an encoder was trained on."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import nearest
from mmjax.data.point_files import Cloud, PointError, from_columns, read_points, suffix_of

MAX_POINTS = 10_000_000
SAMPLINGS = ("random", "farthest", "first")
PADDINGS = ("repeat", "mark")
FEATURES = ("rgb", "normals")
# Of preprocessor_config.json, which no class of transformers has for points.
TYPE_KEY = "point_processor_type"


def open_points(
    source: Any, name: str = "", columns: tuple[str, ...] = ("rgb",), max_points: int = MAX_POINTS
) -> Cloud:
    """Opens one cloud.

    Args:
        source: a path or `file://` URL of a file that `read_points` knows; an array [N, 3] or wider; or a Cloud.
        name: what the error messages call the cloud, for instance the sample it belongs to.
        columns: what stands behind x, y, z in arrays and in files that do not say.
        max_points: larger clouds are refused.

    Raises:
        FileNotFoundError: naming the path.
        PointError: too large, damaged, without points, or with numbers that are not finite.
    """
    if isinstance(source, Cloud):
        label, cloud = _label(name, "cloud"), source
    elif isinstance(source, (str, os.PathLike)):
        path = os.fspath(source).removeprefix("file://")
        label = _label(name, path)
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{label}: no such file of points") from error
        except OSError as error:
            raise PointError(f"{label}: cannot be read ({error})") from error
        cloud = read_points(data, suffix_of(path), label, columns)
    elif isinstance(source, (np.ndarray, list)):
        label = _label(name, "array")
        cloud = from_columns(np.asarray(source), label, columns)
    else:
        raise PointError(f"{_label(name, 'cloud')}: expected a path, array or Cloud, got {type(source).__name__}")
    if len(cloud.xyz) > max_points:
        raise PointError(f"{label}: {len(cloud.xyz)} points, over the limit of {max_points}")
    return cloud


def to_unit_sphere(xyz: np.ndarray) -> np.ndarray:
    """Coordinates [N, 3] moved so that their mean is 0 and scaled so that the farthest is at distance 1."""
    xyz = xyz - xyz.mean(0, keepdims=True, dtype=np.float64)
    radius = np.sqrt((xyz**2).sum(1).max())
    return (xyz / (radius or 1.0)).astype(np.float32)


def farthest_subset(xyz: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    """int [count]: from point `first` of [N, 3] on, each next one farthest from all before it (count <= N)."""
    chosen = np.empty(count, np.int64)
    nearest = np.full(len(xyz), np.inf)
    for at in range(count):
        chosen[at] = first
        nearest = np.minimum(nearest, ((xyz - xyz[first]) ** 2).sum(1))
        first = int(nearest.argmax())
    return chosen


@dataclasses.dataclass(frozen=True)
class PointProcessor:
    """The recipe from a cloud to encoder input.

    Attributes:
        num_points: points of the result.
        features: what stands behind x, y, z: "rgb", "normals", both in order, or nothing.
        fill: what stands for features that a cloud lacks; None makes that an error.
        normalise: whether coordinates are brought into the unit sphere.
        sampling: which points of a larger cloud are kept: "random", "farthest" (the first of them being random
            where there is an rng, else the cloud's first), or the "first".
        padding: how a smaller cloud is filled up: "repeat", its points once more from the first on; "mark",
            with points that are no numbers, which encoders leave out.
        seed: of what is drawn where there is no rng.
        columns, max_points: see `open_points`.
    """

    num_points: int
    features: tuple[str, ...] = ()
    fill: float | None = None
    normalise: bool = True
    sampling: str = "random"
    padding: str = "repeat"
    seed: int = 0
    columns: tuple[str, ...] = ("rgb",)
    max_points: int = MAX_POINTS

    def __post_init__(self):
        if self.num_points < 1:
            raise PointError(f"num_points must be at least 1, got {self.num_points}")
        for name, known in (("sampling", SAMPLINGS), ("padding", PADDINGS)):
            if getattr(self, name) not in known:
                raise PointError(f"{name} is {getattr(self, name)!r}; wanted one of {', '.join(known)}")
        for name in ("features", "columns"):
            if not set(getattr(self, name)) <= set(FEATURES):
                raise PointError(f"{name} are {getattr(self, name)}; wanted some of {', '.join(FEATURES)}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "PointProcessor":
        """Reads what `to_hf` gave; what it leaves out has the defaults here.

        Raises:
            PointError: options that there are not, or no number of points.
        """
        given = {key: value for key, value in config.items() if key != TYPE_KEY}
        fields = {field.name for field in dataclasses.fields(cls)}
        for name in given.keys() - fields:
            raise PointError(f"a recipe of points has no {name!r}.{nearest(name, fields)} It has {', '.join(fields)}")
        if "num_points" not in given:
            raise PointError("a recipe of points needs num_points")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})

    def to_hf(self) -> dict[str, Any]:
        """The preprocessor_config.json that says the same; lists are tuples there."""
        values = dataclasses.asdict(self)
        return {TYPE_KEY: "PointProcessor", **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of every output, (points, channels)."""
        return (self.num_points, 3 + 3 * len(self.features))

    def open(self, source: Any, name: str = "") -> Cloud:
        """`open_points` with this recipe's options."""
        return open_points(source, name, self.columns, self.max_points)

    def __call__(self, source: Any, name: str = "", rng: np.random.Generator | None = None) -> np.ndarray:
        """Opens and processes one cloud; returns float32 of the shape `item_shape`.

        Raises:
            PointError: as `open_points`; or the cloud lacks a feature.
        """
        cloud = self.open(source, name)
        parts = [to_unit_sphere(cloud.xyz) if self.normalise else cloud.xyz]
        for feature in self.features:
            values = getattr(cloud, feature)
            if values is None and self.fill is None:
                raise PointError(f"{_label(name, _what(source))}: has no {feature}")
            parts.append(np.full_like(cloud.xyz, self.fill) if values is None else values)
        points = np.concatenate(parts, axis=1).astype(np.float32)
        return self._pad(points[self._chosen(points[:, :3], rng)])

    def _chosen(self, xyz: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Which points are kept, all of a small cloud in their order."""
        if len(xyz) <= self.num_points or self.sampling == "first":
            return np.arange(min(len(xyz), self.num_points))
        if self.sampling == "farthest":
            return farthest_subset(xyz, self.num_points, 0 if rng is None else int(rng.integers(len(xyz))))
        rng = np.random.default_rng(self.seed) if rng is None else rng
        return rng.choice(len(xyz), self.num_points, replace=False)

    def _pad(self, points: np.ndarray) -> np.ndarray:
        if self.padding == "repeat":
            return points[np.arange(self.num_points) % len(points)]
        padded = np.full((self.num_points, points.shape[1]), np.nan, np.float32)
        padded[: len(points)] = points
        return padded


def _what(source: Any) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "cloud"


def _label(name: str, what: str) -> str:
    return f"{name}: {what}" if name and name != what else what
