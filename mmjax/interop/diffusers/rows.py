"""Rows that diffusers' components have in common: a convolution, a linear map, a norm, blocks of UNets."""

from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Part, Row, Transform


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


def timed_block(ours: str, theirs: str, changes: bool) -> list[Row]:
    """A residual block that reads the time; with `changes` its shortcut is a map."""
    rows = linear(f"{ours}/time", f"{theirs}.time_emb_proj")
    for number in (1, 2):
        rows += norm(f"{ours}/norm_{number}", f"{theirs}.norm{number}")
        rows += conv(f"{ours}/conv_{number}", f"{theirs}.conv{number}")
    return rows + (conv(f"{ours}/shortcut", f"{theirs}.conv_shortcut") if changes else [])


def transformer(ours: str, theirs: str, width: int, around: Transform) -> list[Row]:
    """A `MapTransformer` with blocks of `width` channels; `around` is the transform of the maps before and behind."""
    rows = norm(f"{ours}/norm", f"{theirs}.norm")
    for name in ("proj_in", "proj_out"):
        rows += [Row(f"{ours}/{name}/kernel", f"{theirs}.{name}.weight", around)]
        rows += [Row(f"{ours}/{name}/bias", f"{theirs}.{name}.bias")]
    mine, there = f"{ours}/blocks", f"{theirs}.transformer_blocks.{{i}}"
    for number, name in enumerate(("attn", "cross", "mlp"), start=1):
        rows += norm(f"{mine}/{name}_norm", f"{there}.norm{number}")
    for number, name in enumerate(("attn", "cross"), start=1):
        for letter in "qkv":
            rows += [Row(f"{mine}/{name}/{letter}/kernel", f"{there}.attn{number}.to_{letter}.weight", LINEAR)]
        rows += [Row(f"{mine}/{name}/o/kernel", f"{there}.attn{number}.to_out.0.weight", Linear(2))]
        rows += [Row(f"{mine}/{name}/o/bias", f"{there}.attn{number}.to_out.0.bias")]
    sizes = (4 * width, 4 * width)
    for index, name in enumerate(("up", "gate")):
        rows += [Row(f"{mine}/mlp/{name}/kernel", f"{there}.ff.net.0.proj.weight", Part(index, sizes, LINEAR))]
        rows += [Row(f"{mine}/mlp/{name}/bias", f"{there}.ff.net.0.proj.bias", Part(index, sizes, FLAT))]
    return rows + linear(f"{mine}/mlp/down", f"{there}.ff.net.2")
