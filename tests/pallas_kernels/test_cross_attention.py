import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.nn.attention import attend
from pallas_kernels.cross_attention import cross_attention, cross_attention_reference

ROOT = pathlib.Path(__file__).parents[2]

COMPILE_FOR_TPU = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from pallas_kernels.cross_attention import cross_attention

device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]

def shape(*sizes, dtype):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=SingleDeviceSharding(device))

def loss(q, k, v, mask):
    return cross_attention(q, k, v, mask).astype(jnp.float32).sum()

for batch, length, heads, groups, keys, width, dtype in (
    (2, 600, 4, 2, 2057, 128, "bfloat16"),
    (1, 7, 3, 1, 50, 64, "float32"),
):
    q = shape(batch, length, heads, width, dtype=dtype)
    k = shape(batch, groups, keys, width, dtype=dtype)
    mask = shape(batch, keys, dtype="bool")
    # The gradient's program holds the forward kernel too.
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, mask).compile()
    print(device.device_kind, "kernels", compiled.as_text().count('custom_call_target="tpu_custom_call"'))
"""


def example(batch, length, heads, groups, keys, width, dtype="float32", visible=None):
    """q, k, v, the output's gradient and a mask; `visible` says how many keys each row sees, scattered over all."""
    rng = np.random.default_rng(length)
    q_shape, k_shape = (batch, length, heads, width), (batch, groups, keys, width)
    arrays = [jnp.asarray(rng.standard_normal(s), dtype) for s in (q_shape, k_shape, k_shape, q_shape)]
    if visible is None:
        return *arrays, None
    mask = np.stack([rng.permutation(keys) < count for count in visible])
    return *arrays, jnp.asarray(mask)


def with_gradients(f, q, k, v, grad):
    """(output, dq, dk, dv) as float32 arrays."""

    def run(q, k, v, grad):
        out, backward = jax.vjp(f, q, k, v)
        return out, *backward(grad)

    return [np.asarray(array, np.float32) for array in jax.jit(run)(q, k, v, grad)]


def by_torch(q, k, v, mask, grad):
    q, k, v, grad = (torch.from_numpy(np.array(array, np.float32)) for array in (q, k, v, grad))
    for array in (q, k, v):
        array.requires_grad_()
    repeats = q.shape[2] // k.shape[1]
    seen = None if mask is None else torch.from_numpy(np.array(mask))[:, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1), attn_mask=seen
    ).transpose(1, 2)
    out.backward(grad)
    return [array.detach().numpy() for array in (out, q.grad, k.grad, v.grad)]


def close(got, wanted, tolerance):
    for name, a, b in zip(("output", "dq", "dk", "dv"), got, wanted, strict=True):
        assert np.isfinite(a).all(), name
        assert np.abs(a - b).max() <= tolerance * max(1, np.sqrt((b**2).mean())), name


@pytest.mark.quick("sizes1-visible1")
@pytest.mark.parametrize(
    "sizes, visible",
    [
        ((2, 7, 4, 2, 13, 24), None),  # one block of each, smaller than a tile
        ((2, 131, 3, 3, 300, 64), (211, 40)),  # 2 blocks of queries, 3 of keys, the last one in part
        ((3, 53, 6, 2, 384, 16), (384, 1, 200)),  # three heads to a key head, whole blocks
    ],
)
def test_equals_torch(sizes, visible):
    q, k, v, grad, mask = example(*sizes, visible=visible)
    f = lambda q, k, v: cross_attention(q, k, v, mask, block_q=128, block_kv=128, interpret=True)
    wanted = by_torch(q, k, v, mask, grad)
    close(with_gradients(f, q, k, v, grad), wanted, 1e-5)
    close(with_gradients(lambda *a: cross_attention_reference(*a, mask), q, k, v, grad), wanted, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_equals_attend_where_a_row_sees_nothing_or_stops_early(dtype, tolerance):
    q, k, v, grad, _ = example(3, 35, 4, 2, 261, 32, dtype)
    mask = jnp.arange(261) < jnp.asarray([[100], [0], [261]])  # padding at the end: 1 block of 3, none, all
    wanted = with_gradients(lambda *a: cross_attention_reference(*a, mask), q, k, v, grad)
    close(with_gradients(lambda *a: attend(*a, mask[:, None]), q, k, v, grad), wanted, tolerance)
    f = lambda *a: cross_attention(*a, mask, block_q=128, block_kv=128, interpret=True)
    got = with_gradients(f, q, k, v, grad)
    close(got, wanted, tolerance)
    mean = np.asarray(v[1], np.float32).mean(1).repeat(2, 0)
    np.testing.assert_allclose(got[0][1], np.broadcast_to(mean, got[0][1].shape), atol=tolerance)
    assert not got[1][1].any() and not got[2][1].any()
    assert not got[2][0, :, 100:].any() and not got[3][0, :, 100:].any()


def test_large_logits_neither_overflow_nor_lose_hidden_keys():
    q, k, v, grad, mask = example(1, 9, 1, 1, 260, 8, visible=(130,))
    k = jnp.where(mask[:, None, :, None], k, 50 * k)
    q = 30 * q  # logits beyond 89, where exp overflows
    f = lambda *a: cross_attention(*a, mask, block_q=128, block_kv=128, interpret=True)
    reference = lambda *a: cross_attention_reference(*a, mask)
    close(with_gradients(f, q, k, v, grad), with_gradients(reference, q, k, v, grad), 1e-4)


def interpreter():
    return pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise", num_cores_or_threads=2
    )


@pytest.mark.slow
def test_no_race_and_nothing_uninitialised(capfd):
    q, k, v, grad, mask = example(1, 130, 1, 1, 200, 16, visible=(90,))
    f = lambda *a: cross_attention(*a, mask, block_q=128, block_kv=128, interpret=interpreter())
    got = with_gradients(f, q, k, v, grad)
    assert "RACE DETECTED" not in "".join(capfd.readouterr())
    close(got, with_gradients(lambda *a: cross_attention_reference(*a, mask), q, k, v, grad), 1e-5)


def test_the_race_detector_sees_a_race(capfd):
    """Two cores write one block: without this, the test above could pass for want of a detector."""

    def copy(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    racy = pl.pallas_call(
        copy,
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        grid=(2,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpreter(),
    )
    jax.block_until_ready(racy(jnp.ones((16, 128))))
    assert "RACE DETECTED" in "".join(capfd.readouterr())


def test_compiles_for_v5e(tpu_environment):
    command = [sys.executable, "-c", COMPILE_FOR_TPU]
    done = subprocess.run(command, cwd=ROOT, env=tpu_environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"(.*) kernels (\d+)", done.stdout) == [("TPU v5 lite", "3")] * 2, done.stdout


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": np.zeros((2, 5, 3, 16), np.float32)}, "multiple of K"),
        ({"q": np.zeros((2, 5, 4, 32), np.float32)}, r"k, v \[B, K, S, C\], not q \(2, 5, 4, 32\)"),
        ({"q": np.zeros((2, 0, 4, 16), np.float32)}, "no empty dimension"),
        ({"v": np.zeros((2, 2, 9, 16), jnp.bfloat16)}, "all float32 or all bfloat16"),
        ({"mask": np.ones((2, 8), bool)}, r"= \(2, 9\), not bool \(2, 8\)"),
        ({"mask": np.ones((2, 9), np.int32)}, "int32"),
        ({"block_kv": 96}, "block_kv 96 must be multiples of 128"),
    ],
)
def test_bad_input_is_named(change, message):
    key = np.zeros((2, 2, 9, 16), np.float32)
    arguments = {"q": np.zeros((2, 5, 4, 16), np.float32), "k": key, "v": key, "mask": None} | change
    with pytest.raises(ValueError, match=message):
        cross_attention(**arguments)
