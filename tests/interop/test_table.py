"""The two-way table: transforms have inverses, names are brought together, mismatches are all told."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from mmjax.interop.table import (
    CONV,
    FLAT,
    IDENTITY,
    LINEAR,
    HalfSplitRotary,
    Linear,
    Part,
    Row,
    Squeezed,
    export_params,
    import_params,
    rename,
)
from mmjax.interop.tensors import WeightsError
from mmjax.paths import flatten, unflatten


@pytest.mark.parametrize(
    "transform, ours, theirs",
    [
        (IDENTITY, (3, 5), (3, 5)),
        (LINEAR, (5, 7), (7, 5)),
        (LINEAR, (5, 2, 3), (6, 5)),
        (Linear(2), (2, 3, 5), (5, 6)),
        (FLAT, (2, 3), (6,)),
        (FLAT, (), (1,)),
        (CONV, (2, 3, 4, 5), (5, 4, 2, 3)),
        (CONV, (3, 1, 7), (7, 1, 3)),
        (CONV, (2, 3, 4, 5, 6), (6, 5, 2, 3, 4)),
        (Squeezed((0,)), (4,), (1, 4)),
        (Squeezed((0, 2)), (3, 4), (1, 3, 1, 4)),
        (Squeezed((0,)), (), (1,)),
        (HalfSplitRotary(6, LINEAR), (5, 2, 6), (12, 5)),
        (HalfSplitRotary(4, FLAT), (3, 4), (12,)),
    ],
)
def test_transforms_are_inverse_and_know_their_shapes(transform, ours, theirs):
    rng = np.random.default_rng(0)
    mine = rng.normal(size=ours)
    there = transform.to_theirs(mine)
    assert transform.theirs_shape(ours) == theirs == there.shape
    np.testing.assert_array_equal(transform.to_ours(there, ours), mine)
    other = rng.normal(size=theirs)
    np.testing.assert_array_equal(transform.to_theirs(transform.to_ours(other, ours)), other)


def test_linear_and_conv_mean_what_torch_means():
    torch.manual_seed(0)
    linear, conv = torch.nn.Linear(5, 6), torch.nn.Conv2d(3, 4, (2, 3))
    x, image = torch.randn(2, 5), torch.randn(1, 3, 2, 3)
    kernel = LINEAR.to_ours(linear.weight.detach().numpy(), (5, 2, 3))
    bias = FLAT.to_ours(linear.bias.detach().numpy(), (2, 3))
    mine = np.einsum("bd,dhc->bhc", x.numpy(), kernel) + bias
    np.testing.assert_allclose(mine.reshape(2, 6), linear(x).detach().numpy(), atol=1e-6)
    window = CONV.to_ours(conv.weight.detach().numpy(), (2, 3, 3, 4))
    mine = np.einsum("bchw,hwco->bo", image.numpy(), window) + conv.bias.detach().numpy()
    np.testing.assert_allclose(mine, conv(image)[:, :, 0, 0].detach().numpy(), atol=1e-6)


def test_half_split_is_the_inverse_of_llama_cpps_permutation():
    """The permutation as its converter writes it: split halves go to interleaved pairs."""
    heads, width, inputs = 3, 8, 5
    half_split = np.random.default_rng(1).normal(size=(heads * width, inputs))
    paired = half_split.reshape(heads, 2, width // 2, inputs).swapaxes(1, 2).reshape(half_split.shape)
    transform = HalfSplitRotary(width, LINEAR)
    mine = transform.to_ours(paired, (inputs, heads, width))
    np.testing.assert_array_equal(mine, half_split.T.reshape(inputs, heads, width))


TABLE = [
    Row("top/scale", "model.norm.weight"),
    Row("blocks/q/kernel", "layers.{i}.q.weight", LINEAR),
    Row("blocks/experts/up", "layers.{i}.experts.{j}.w", LINEAR),
    Row("head/q", "in_proj", Part(0, (4, 2, 2), LINEAR)),
    Row("head/v", "in_proj", Part(2, (4, 2, 2), LINEAR)),
    Row("head/k", "in_proj", Part(1, (4, 2, 2), LINEAR)),
]


def shapes(dtype=np.float32):
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    return {
        "top": {"scale": spec(3)},
        "blocks": {"q": {"kernel": spec(2, 3, 2, 4)}, "experts": {"up": spec(2, 5, 3, 6)}},
        "head": {"q": spec(3, 4), "k": spec(3, 2), "v": spec(3, 2)},
    }


def tensors():
    rng = np.random.default_rng(2)
    make = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    named = {"model.norm.weight": make(3), "in_proj": make(8, 3)}
    named |= {f"layers.{i}.q.weight": make(8, 3) for i in range(2)}
    return named | {f"layers.{i}.experts.{j}.w": make(6, 3) for i in range(2) for j in range(5)}


def test_round_trip_through_stacks_experts_and_fused_parts():
    params = import_params(TABLE, tensors(), shapes())
    assert {p: a.shape for p, a in flatten(params).items()} == {
        p: s.shape for p, s in flatten(shapes()).items()
    }
    np.testing.assert_array_equal(
        params["blocks"]["experts"]["up"][1, 3], tensors()["layers.1.experts.3.w"].T
    )
    np.testing.assert_array_equal(params["head"]["v"], tensors()["in_proj"][6:].T)
    back = dict(export_params(TABLE, params))
    assert set(back) == set(tensors())
    for name, array in tensors().items():
        np.testing.assert_array_equal(back[name], array)


def test_put_sees_every_finished_leaf_and_the_dtype_is_the_models():
    seen = {}
    params = import_params(
        TABLE, tensors(), shapes(ml_dtypes.bfloat16), put=lambda p, a: seen.setdefault(p, a)
    )
    assert flatten(params) == seen
    assert {a.dtype for a in seen.values()} == {np.dtype(ml_dtypes.bfloat16)}
    expected = tensors()["layers.0.q.weight"].T.reshape(3, 2, 4).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(seen["blocks/q/kernel"][0], expected)


def test_one_error_tells_everything_that_does_not_fit():
    given = tensors()
    del given["layers.1.q.weight"], given["layers.0.experts.4.w"], given["model.norm.weight"]
    given["in_proj"] = given["in_proj"][:7]
    given["layers.0.experts.0.w"] = np.zeros((6, 4))
    given["rotary.inv_freq"] = given["extra.a"] = given["extra.b"] = np.zeros(2)
    with pytest.raises(WeightsError) as caught:
        import_params(TABLE, given, shapes(), ignore=(r".*inv_freq",))
    message = str(caught.value)
    assert "3 missing" in message and "2 left over" in message and "2 misshapen" in message
    for name in (
        "layers.1.q.weight (8, 3), for our blocks/q/kernel",
        "layers.0.experts.4.w",
        "model.norm.weight",
    ):
        assert name in message
    for name in (
        "extra.a (2,)",
        "extra.b",
        "in_proj is (7, 3), should be (8, 3)",
        "layers.0.experts.0.w is (6, 4)",
    ):
        assert name in message
    assert "inv_freq" not in message


def test_leaves_and_rows_without_each_other():
    wanted = shapes()
    wanted["new"] = {"leaf": jax.ShapeDtypeStruct((2,), np.float32)}
    del wanted["top"]
    with pytest.raises(
        WeightsError, match=re.compile("without a row:\n  new/leaf.*without a leaf.*top/scale", re.S)
    ):
        import_params(TABLE, tensors(), wanted)
    with pytest.raises(WeightsError, match="no row for our leaf 'new/leaf'"):
        list(
            export_params(
                TABLE, {**unflatten({"new/leaf": np.zeros(2)}), **import_params(TABLE, tensors(), shapes())}
            )
        )
    with pytest.raises(WeightsError, match="no leaf 'top/scale' for 'model.norm.weight'"):
        list(export_params(TABLE, {}))


def test_rename_applies_rules_in_turn_and_refuses_collisions():
    rules = [(r"^model\.", ""), (r"^layers\.(\d+)", r"blocks.\1")]
    assert list(rename({"model.layers.3.w": np.zeros(1), "b": np.zeros(1)}, rules)) == ["blocks.3.w", "b"]
    with pytest.raises(WeightsError, match="'model.b' and 'b' are both a spelling of 'b'"):
        rename({"model.b": np.zeros(1), "b": np.zeros(1)}, rules)
