"""Rows of `AdaptiveBlock` and of the maps around it: what DiT, PixArt and SD3 have in common in diffusers."""

from mmjax.interop.diffusers.rows import linear
from mmjax.interop.table import FLAT, LINEAR, Linear, Row


def attention(ours: str, theirs: str, qkv_bias: bool = True, names: tuple[str, ...] = ()) -> list[Row]:
    """q, k, v and o; `names` are theirs if they are not to_q, to_k, to_v, to_out.0; without the last there is no o."""
    rows = []
    for letter, name in zip("qkvo", names or ("to_q", "to_k", "to_v", "to_out.0"), strict=False):
        kernel = Linear(2) if letter == "o" else LINEAR
        rows.append(Row(f"{ours}/{letter}/kernel", f"{theirs}.{name}.weight", kernel))
        if letter == "o" or qkv_bias:
            rows.append(Row(f"{ours}/{letter}/bias", f"{theirs}.{name}.bias", FLAT))
    return rows


def mlp(ours: str, theirs: str) -> list[Row]:
    """An MLP after an embedding of theirs, linear_1 and linear_2."""
    return linear(f"{ours}/up", f"{theirs}.linear_1") + linear(f"{ours}/down", f"{theirs}.linear_2")


def feed_forward(ours: str, theirs: str) -> list[Row]:
    """An MLP of a block."""
    return linear(f"{ours}/up", f"{theirs}.net.0.proj") + linear(f"{ours}/down", f"{theirs}.net.2")


def modulation(ours: str, theirs: str) -> list[Row]:
    """A Modulation."""
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Row(f"{ours}/bias", f"{theirs}.bias", FLAT)]


def halves(ours: str, theirs: str, qkv_bias: bool, reads: bool = False) -> list[Row]:
    """An AdaptiveBlock."""
    rows = attention(f"{ours}/attn", f"{theirs}.attn1", qkv_bias) + feed_forward(f"{ours}/mlp", f"{theirs}.ff")
    return rows + (attention(f"{ours}/cross", f"{theirs}.attn2", qkv_bias) if reads else [])
