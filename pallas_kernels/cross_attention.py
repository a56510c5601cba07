"""Flash cross-attention for TPU: T queries over S long, padded media tokens, grouped heads, forward and backward.

The T x S logits never reach HBM: keys and values pass by in blocks while a running maximum, sum and weighted value
stay in VMEM in float32 (online softmax), and the backward pass makes the weights again from the saved logsumexp.
After Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness" (2022).

What is particular to cross-attention here:
- No causal order, so the H/K query heads that share a key head are merely more query rows: [B, K, T * H/K, C].
  With T * H/K <= block_q (a resampler's latents) every key and value is read from HBM exactly once.
- The mask is over keys and per row, so blocks beyond a row's last visible key are neither fetched nor computed.
- Logits lie as [keys, queries]: maximum and sum run over sublanes, and what belongs to a query is a row of lanes.
- Keys and values are not padded in HBM: a last block that reaches past S is masked in the kernel. Queries are padded in
  the transposition that they need anyway.

Cost, forward: 4 B H T S C FLOPs; HBM bytes about 2 B K S C * itemsize * ceil(T H / (K block_q)), q and the output
beside. So R = min(T H / K, block_q) FLOPs come on each byte of bfloat16 keys: HBM bounds it while R is under peak FLOPs
over bandwidth (about 240 on v5e, 560 on v6e); above, the MXU, and the exponentials beside it. The backward pass:
14 B H T S C FLOPs, in two kernels (dq; dk and dv). A head width C under 128 leaves MXU lanes idle, and XLA, which keeps
such arrays with S in the lanes, copies keys and values into rows of 128 lanes for the kernel.

All three kernels were compiled for TPU v5e and v6e with the real TPU compiler (a test does so for v5e) and run in
Pallas' interpreter on CPU, also with race and uninitialised-memory detection. They were never run on a TPU, nor timed.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
# Rows of one packed bfloat16 tile; float32 needs 8.
SUBLANES = 16
HIDDEN = jnp.finfo(jnp.float32).min


def cross_attention_reference(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """What `cross_attention` computes, as plain XLA with the whole [T, S] logits in memory; arguments as there."""
    batch, length, heads, width = q.shape
    groups = k.shape[1]
    precision = _precision(q.dtype)
    q = q.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("btkgc,bksc->bkgts", q, k, precision=precision, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(width)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, None], logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bksc->btkgc", weights, v, precision=precision)
    return out.reshape(batch, length, heads, width)


def cross_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    block_q: int = 512,
    block_kv: int | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
    """softmax(q k / sqrt(C)) v with grouped heads, in blocks; differentiable in q, k and v.

    The semantics are those of mmjax.nn.attention.attend with a mask over keys. Products of float32 are made at
    float32 precision, those of bfloat16 on the MXU as they are; softmax and all sums are in float32.
    Under a mesh, call it inside `jax.shard_map(..., check_vma=False)` on each device's own batch and heads.

    Args:
        q: [B, T, H, C], float32 or bfloat16.
        k, v: [B, K, S, C], head-major, H a multiple of K, q's dtype. T and S may be any size from 1.
        mask: bool [B, S], False for keys not to be seen (padding), or None. A row that sees none gets the mean of v,
            and gives no gradient to q and k.
        block_q, block_kv: the most query rows (T * H/K are packed together) and keys at a time, multiples of 128. None
            is 1024 keys up to 512 bytes a head, else 512; so it fits the 16 MiB of VMEM that v5e gives a kernel
            by default up to C = 256 in float32 and 512 in bfloat16. Beyond, ask for less.
        interpret: run on CPU in Pallas' interpreter: True, or InterpretParams to look for races.

    Returns:
        [B, T, H, C] in q's dtype.

    Raises:
        ValueError: for shapes, dtypes or block sizes other than these, naming them.
    """
    if block_kv is None:
        block_kv = 1024 if q.shape[-1] * q.dtype.itemsize <= 512 else 512
    _check(q, k, v, mask, block_q, block_kv)
    batch, length, heads, width = q.shape
    groups, keys = k.shape[1:3]
    rows = length * heads // groups
    block_q, padded = _even_blocks(rows, block_q, SUBLANES)
    block_kv, padded_keys = _even_blocks(keys, block_kv, LANES)

    if mask is None:
        visible = jnp.ones((batch, keys), bool)
    else:
        # Zero queries see all keys alike: a row without visible keys becomes the mean of v, no case in the kernels.
        some = mask.any(-1, keepdims=True)
        visible = mask | ~some
        q = jnp.where(some[:, :, None, None], q, 0)
    last = jnp.max(jnp.where(visible, jnp.arange(keys), 0), axis=-1) // block_kv
    visible = jnp.pad(visible, ((0, 0), (0, padded_keys - keys)))[:, None].astype(jnp.int32)

    q = q.reshape(batch, length, groups, heads // groups, width).swapaxes(1, 2).reshape(batch, groups, rows, width)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padded - rows), (0, 0)))
    tiling = _Tiling(batch, groups, padded, keys, width, block_q, block_kv, interpret)
    out = _attention(q, k, v, visible, last.astype(jnp.int32), tiling)[:, :, :rows]
    out = out.reshape(batch, groups, length, heads // groups, width).swapaxes(1, 2)
    return out.reshape(batch, length, heads, width)


def _check(q, k, v, mask, block_q, block_kv):
    shapes = f"q {q.shape} {q.dtype}, k {k.shape} {k.dtype}, v {v.shape} {v.dtype}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        raise ValueError(f"cross_attention takes q [B, T, H, C] and k, v [B, K, S, C], not {shapes}")
    if 0 in q.shape + k.shape or q.shape[2] % k.shape[1]:
        raise ValueError(f"cross_attention takes no empty dimension, and query heads H a multiple of K, not {shapes}")
    if {q.dtype, k.dtype, v.dtype} not in ({jnp.dtype("float32")}, {jnp.dtype("bfloat16")}):
        raise ValueError(f"cross_attention takes q, k and v all float32 or all bfloat16, not {shapes}")
    if mask is not None and (mask.dtype != bool or mask.shape != (k.shape[0], k.shape[2])):
        wanted = (k.shape[0], k.shape[2])
        raise ValueError(f"cross_attention takes a bool mask [B, S] = {wanted}, not {mask.dtype} {mask.shape}")
    if min(block_q, block_kv) < LANES or block_q % LANES or block_kv % LANES:
        raise ValueError(f"block_q {block_q} and block_kv {block_kv} must be multiples of {LANES}")


def _even_blocks(size: int, largest: int, tile: int) -> tuple[int, int]:
    """Size in blocks of at most `largest` that waste least -> (block, block * their number)."""
    count = pl.cdiv(size, largest)
    block = pl.cdiv(size, count)
    tile = tile if count == 1 else LANES  # a block that is the whole dimension need not be whole lanes
    block = pl.cdiv(block, tile) * tile
    return block, block * pl.cdiv(size, block)


@dataclasses.dataclass(frozen=True)
class _Tiling:
    """Sizes of one call: q [batch, groups, rows, width], k and v [batch, groups, keys, width], in blocks."""

    batch: int
    groups: int
    rows: int
    keys: int
    width: int
    block_q: int
    block_kv: int
    interpret: bool | pltpu.InterpretParams

    def call(self, kernel, name, grid, in_specs, outs, scratch, products, itemsize):
        """pallas_call over grid (batch, groups, *grid), whose last dimension accumulates."""
        pairs = self.batch * self.groups * self.rows * self.keys
        kv_bytes = 2 * self.batch * self.groups * self.keys * self.width * itemsize * (self.rows // self.block_q)
        return pl.pallas_call(
            functools.partial(kernel, scale=1 / math.sqrt(self.width), keys=self.keys),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(self.batch, self.groups, *grid),
                in_specs=in_specs,
                out_specs=[spec for _, spec in outs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            out_shape=[shape for shape, _ in outs],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * pairs * self.width, transcendentals=pairs, bytes_accessed=kv_bytes
            ),
            interpret=self.interpret,
            name=name,
        )


def _precision(dtype):
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def _dot(a, b, a_dim, b_dim):
    """Product over dimension a_dim of a and b_dim of b, accumulated in float32."""
    return jax.lax.dot_general(
        a, b, (((a_dim,), (b_dim,)), ((), ())), precision=_precision(a.dtype), preferred_element_type=jnp.float32
    )


def _inside(ref, block, keys):
    """A block of keys or values, with zeros where it reaches past the last key (what lies there is undefined)."""
    value = ref[...]
    if keys % value.shape[0] == 0:
        return value
    row = jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
    return jnp.where(row < keys - block * value.shape[0], value, jnp.zeros_like(value))


def _column(row):
    """[1, N] -> [N, 1]."""
    return jnp.expand_dims(row[0], -1)


def _logits(q_ref, k_ref, visible_ref, scale):
    """[keys, queries] float32, HIDDEN for hidden keys, also where what lies past the last key is not a number."""
    return jnp.where(_column(visible_ref[...]) != 0, _dot(k_ref[...], q_ref[...], 1, 1) * scale, HIDDEN)


def _forward_kernel(
    last_ref, q_ref, k_ref, v_ref, visible_ref, o_ref, lse_ref, max_ref, sum_ref, acc_ref, *, scale, keys
):
    """Accumulates v^T weights [C, queries] over key blocks. last [B] in SMEM: a row's last block with a visible key."""
    block = pl.program_id(3)
    last = last_ref[pl.program_id(0)]

    @pl.when(block == 0)
    def _start():
        max_ref[...] = jnp.full_like(max_ref, HIDDEN)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    @pl.when(block <= last)
    def _accumulate():
        # While only hidden keys have passed, the maximum is HIDDEN and they count alike; the first visible key
        # multiplies all that by exp(HIDDEN - its logit) = 0.
        logits = _logits(q_ref, k_ref, visible_ref, scale)
        old = max_ref[...]
        new = jnp.maximum(old, jnp.max(logits, axis=0, keepdims=True))
        weights = jnp.exp(logits - new)
        kept = jnp.exp(old - new)
        max_ref[...] = new
        sum_ref[...] = kept * sum_ref[...] + jnp.sum(weights, axis=0, keepdims=True)
        v = _inside(v_ref, block, keys)
        acc_ref[...] = kept * acc_ref[...] + _dot(v, weights.astype(v.dtype), 0, 0)

    @pl.when(block == last)
    def _finish():
        o_ref[...] = jnp.transpose(acc_ref[...] / sum_ref[...]).astype(o_ref.dtype)
        lse_ref[...] = max_ref[...] + jnp.log(sum_ref[...])


def _dq_kernel(last_ref, q_ref, k_ref, v_ref, visible_ref, do_ref, lse_ref, delta_ref, dq_ref, acc_ref, *, scale, keys):
    block = pl.program_id(3)
    last = last_ref[pl.program_id(0)]

    @pl.when(block == 0)
    def _start():
        acc_ref[...] = jnp.zeros_like(acc_ref)

    @pl.when(block <= last)
    def _accumulate():
        k, v = _inside(k_ref, block, keys), _inside(v_ref, block, keys)
        weights = jnp.exp(_logits(q_ref, k_ref, visible_ref, scale) - lse_ref[...])
        d_logits = weights * (_dot(v, do_ref[...], 1, 1) - delta_ref[...])
        acc_ref[...] += _dot(k, d_logits.astype(k.dtype), 0, 0)

    @pl.when(block == last)
    def _finish():
        dq_ref[...] = jnp.transpose(acc_ref[...] * scale).astype(dq_ref.dtype)


def _dkv_kernel(
    last_ref, q_ref, k_ref, v_ref, visible_ref, do_ref, lse_ref, delta_ref, dk_ref, dv_ref, dk_acc, dv_acc,
    *, scale, keys,
):  # fmt: skip
    """A hidden key, or what lies past the last, spoils only its own row of dk and dv, set to zero at the end."""
    block = pl.program_id(2)
    last = last_ref[pl.program_id(0)]
    step = pl.program_id(3)

    @pl.when(step == 0)
    def _start():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    @pl.when(block <= last)
    def _accumulate():
        q, do = q_ref[...], do_ref[...]
        weights = jnp.exp(_dot(k_ref[...], q, 1, 1) * scale - lse_ref[...])
        dv_acc[...] += _dot(weights.astype(do.dtype), do, 1, 0)
        d_logits = weights * (_dot(v_ref[...], do, 1, 1) - delta_ref[...])
        dk_acc[...] += _dot(d_logits.astype(q.dtype), q, 1, 0)

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish():
        seen = _column(visible_ref[...]) != 0
        dk_ref[...] = jnp.where(seen, dk_acc[...] * scale, 0).astype(dk_ref.dtype)
        dv_ref[...] = jnp.where(seen, dv_acc[...], 0).astype(dv_ref.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q, k, v, visible, last, tiling):
    """q [B, K, R, C], k and v [B, K, S, C], visible [B, 1, S padded] int32, last [B] -> [B, K, R, C]."""
    return _forward(q, k, v, visible, last, tiling)[0]


def _by_query(t: _Tiling):
    """Block specs over grid (batch, group, query block, key block): of query rows, keys, visible, row statistics."""

    # Beyond the last visible block the index stays, so nothing is fetched.
    def key(b, j, last):
        return jnp.minimum(j, last[b])

    return (
        pl.BlockSpec((None, None, t.block_q, t.width), lambda b, g, i, j, last: (b, g, i, 0)),
        pl.BlockSpec((None, None, t.block_kv, t.width), lambda b, g, i, j, last: (b, g, key(b, j, last), 0)),
        pl.BlockSpec((None, 1, t.block_kv), lambda b, g, i, j, last: (b, 0, key(b, j, last))),
        pl.BlockSpec((None, None, 1, t.block_q), lambda b, g, i, j, last: (b, g, 0, i)),
    )


def _forward(q, k, v, visible, last, t):
    query, key, seen, statistic = _by_query(t)
    out, lse = t.call(
        _forward_kernel,
        "cross_attention",
        (t.rows // t.block_q, pl.cdiv(t.keys, t.block_kv)),
        [query, key, key, seen],
        [
            (jax.ShapeDtypeStruct(q.shape, q.dtype), query),
            (jax.ShapeDtypeStruct((t.batch, t.groups, 1, t.rows), jnp.float32), statistic),
        ],
        [(1, t.block_q), (1, t.block_q), (t.width, t.block_q)],
        products=2,
        itemsize=q.dtype.itemsize,
    )(last, q, k, v, visible)
    return out, (q, k, v, visible, last, out, lse)


def _backward(t, saved, do):
    q, k, v, visible, last, out, lse = saved
    delta = jnp.sum(do.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)[:, :, None]
    inputs = (last, q, k, v, visible, do, lse, delta)
    blocks = (t.rows // t.block_q, pl.cdiv(t.keys, t.block_kv))

    query, key, seen, statistic = _by_query(t)
    (dq,) = t.call(
        _dq_kernel,
        "cross_attention_dq",
        blocks,
        [query, key, key, seen, query, statistic, statistic],
        [(jax.ShapeDtypeStruct(q.shape, q.dtype), query)],
        [(t.width, t.block_q)],
        products=3,
        itemsize=q.dtype.itemsize,
    )(*inputs)

    # Grid (batch, group, key block, query block). For hidden key blocks the query index stays.
    def row(b, j, i, last):
        return jnp.where(j <= last[b], i, 0)

    query = pl.BlockSpec((None, None, t.block_q, t.width), lambda b, g, j, i, last: (b, g, row(b, j, i, last), 0))
    statistic = pl.BlockSpec((None, None, 1, t.block_q), lambda b, g, j, i, last: (b, g, 0, row(b, j, i, last)))
    key = pl.BlockSpec((None, None, t.block_kv, t.width), lambda b, g, j, i, last: (b, g, jnp.minimum(j, last[b]), 0))
    seen = pl.BlockSpec((None, 1, t.block_kv), lambda b, g, j, i, last: (b, 0, j))
    d_key = pl.BlockSpec((None, None, t.block_kv, t.width), lambda b, g, j, i, last: (b, g, j, 0))
    dk, dv = t.call(
        _dkv_kernel,
        "cross_attention_dkv",
        blocks[::-1],
        [query, key, key, seen, query, statistic, statistic],
        [(jax.ShapeDtypeStruct(k.shape, k.dtype), d_key), (jax.ShapeDtypeStruct(v.shape, v.dtype), d_key)],
        [(t.block_kv, t.width), (t.block_kv, t.width)],
        products=4,
        itemsize=q.dtype.itemsize,
    )(*inputs)
    return dq, dk, dv, None, None


_attention.defvjp(_forward, _backward)
