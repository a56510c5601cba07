"""Experts as transformers holds them in memory: one tensor of all, which files have expert by expert."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.interop.tensors import LazyTensor, Tensors, WeightsError


def split_experts(tensors: Tensors, gate: str, up: str, down: str) -> dict[str, Any]:
    """Brings fused experts to the names that files have; what is not fused stays as it is.

    Args:
        tensors: name -> tensor. "*.experts.gate_up_proj" [E, 2F, D] is gate and up of every expert, one above the
            other, "*.experts.down_proj" [E, D, F] is down.
        gate, up, down: what the parts of expert e are called: "*.experts.{e}.{gate}.weight".

    Raises:
        WeightsError: a fused tensor that cannot be split so.
    """
    out: dict[str, Any] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", name)
        if match is None:
            out[name] = tensor
            continue
        parts = (gate, up) if match[2] == "gate_up_proj" else (down,)
        if len(tensor.shape) != 3 or tensor.shape[1] % len(parts):
            shape = tuple(tensor.shape)
            raise WeightsError(f"{name} has shape {shape}; experts x ({len(parts)} x rows) x columns needed")
        count, rows, columns = tensor.shape
        rows //= len(parts)
        whole = _kept(tensor)
        for expert in range(count):
            for index, part in enumerate(parts):
                where = (expert, slice(index * rows, (index + 1) * rows))
                read = lambda whole=whole, where=where: whole(where)  # noqa: E731
                out[f"{match[1]}.{expert}.{part}.weight"] = LazyTensor((rows, columns), tensor.dtype, read)
    return out


def _kept(tensor: Any) -> Callable[[Any], np.ndarray]:
    """Reads parts of a tensor, whose values are read once for every time that its first part is asked for."""
    held: list[np.ndarray] = []

    def part(where: tuple[int, slice]) -> np.ndarray:
        if not held:
            held.append(np.asarray(tensor))
        piece = held[0][where]
        if where[0] == tensor.shape[0] - 1:
            held.clear()  # experts are read in order, so this was the last one
        return piece

    return part
