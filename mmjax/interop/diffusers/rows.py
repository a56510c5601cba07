"""Rows that diffusers' components have in common: a convolution, a linear map, a norm."""

from mmjax.interop.table import CONV, LINEAR, Row


def conv(ours: str, theirs: str, bias: bool = True) -> list[Row]:
    """A convolution's kernel, and its bias."""
    rows = [Row(f"{ours}/kernel", f"{theirs}.weight", CONV)]
    return [*rows, Row(f"{ours}/bias", f"{theirs}.bias")] if bias else rows


def linear(ours: str, theirs: str) -> list[Row]:
    """A linear map's kernel and bias."""
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Row(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Row]:
    """A norm's scale and bias."""
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]
