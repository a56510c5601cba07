"""Vectors of numbers as media, such as the state of a robot: from lists, arrays and .npy files."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class VectorError(ValueError):
    """A vector that cannot be read, or that is not of the size that is wanted."""


@dataclasses.dataclass(frozen=True)
class VectorProcessor:
    """The recipe of a vector: its numbers as they are, scaled by whoever makes them.

    Attributes:
        size: how many numbers there must be.
    """

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise VectorError(f"size must be at least 1, got {self.size}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "VectorProcessor":
        """Reads what `to_hf` gave.

        Raises:
            VectorError: no size.
        """
        if "size" not in config:
            raise VectorError(f"a vector's recipe needs its size, found {sorted(config)}")
        return cls(int(config["size"]))

    def to_hf(self) -> dict[str, Any]:
        """The preprocessor_config.json that says the same."""
        return {"vector_processor_type": "VectorProcessor", "size": self.size}

    @property
    def item_shape(self) -> tuple[int]:
        """Shape of every vector."""
        return (self.size,)

    def __call__(self, source: Any, name: str = "") -> np.ndarray:
        """A list or array of numbers, or the path of a .npy file -> float32 [size].

        Raises:
            FileNotFoundError: naming the path.
            VectorError: no such numbers, another count of them, or one that is not finite; the message has `name`.
        """
        label = name or "vector"
        if isinstance(source, (str, os.PathLike)):
            path = Path(os.fspath(source).removeprefix("file://"))
            label = f"{label}: {path}"
            try:
                source = np.load(path, allow_pickle=False)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{label}: no such file of numbers") from error
            except (OSError, ValueError, EOFError) as error:
                raise VectorError(f"{label}: cannot be read as .npy ({error})") from error
        try:
            values = np.asarray(source)
        except ValueError as error:
            raise VectorError(f"{label}: expected {self.size} numbers ({error})") from error
        if values.dtype.kind not in "fiub":
            raise VectorError(f"{label}: expected {self.size} numbers, got {type(source).__name__} {str(source)[:80]}")
        if values.shape != (self.size,):
            raise VectorError(f"{label}: expected {self.size} numbers in a row, got shape {list(values.shape)}")
        values = values.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise VectorError(f"{label}: number {bad[0]} of {self.size} is {values[bad[0]]}, not finite")
        return values
