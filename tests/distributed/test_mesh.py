import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.config import ConfigError, from_dict
from mmjax.distributed import mesh as mesh_module
from mmjax.distributed.mesh import MeshConfig, batch_sharding, batch_share, check_fits, make_mesh, put_batch
from mmjax.distributed.rules import MESH_AXES


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def test_make_mesh_has_every_axis_and_takes_the_rest():
    mesh = make_mesh(MeshConfig(fsdp=2, data=-1))
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == dict(data=4, fsdp=2, tensor=1, context=1, expert=1)
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert make_mesh(from_dict(MeshConfig, {"tensor": -1})).shape["tensor"] == 8
    assert make_mesh(MeshConfig(data=-1), jax.devices()[:3]).shape["data"] == 3


def test_a_smaller_mesh_takes_the_first_devices_and_says_so(caplog):
    mesh = make_mesh(MeshConfig(tensor=2))
    assert list(mesh.devices.flat) == jax.devices()[:2]
    assert "2 of 8 devices" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=4, tensor=4), "needs 16 devices and there are 8.*data=2 or tensor=2 would fit"),
        (dict(tensor=3), "needs 3 devices and there are 8.*tensor=8 would fit"),
        (dict(data=-1, tensor=3), "multiple of 3 devices and there are 8.*1, 2, 4, 8"),
        (dict(data=-1, fsdp=-1), "one of them may be -1"),
        (dict(context=0), "must be 1 or more"),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_would(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(MeshConfig(**sizes))


def test_slices_lie_along_data():
    def device(number):
        return types.SimpleNamespace(
            id=number, slice_index=number % 2, process_index=0, platform="cpu", device_kind="cpu"
        )

    with pytest.raises(ConfigError, match="2 slices.*multiple of 2"):
        make_mesh(MeshConfig(data=1, tensor=8), [device(number) for number in range(8)])
    sizes = dict(data=4, fsdp=1, tensor=2, context=1, expert=1)
    grid = mesh_module._multi_slice_grid(sizes, [device(number) for number in range(8)], 2)
    slices = np.vectorize(lambda device: device.slice_index)(grid)[:, 0, :, 0, 0]
    assert slices.shape == (4, 2)
    assert (slices == slices[:, :1]).all()  # tensor stays inside a slice
    assert sorted(slices[:, 0]) == [0, 0, 1, 1]


def test_check_fits_lists_every_dimension_that_does_not():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    good = {"embed": shape(32, 6), "blocks": {"q": shape(3, 6, 8, 5)}, "count": shape()}
    q = ("layers", "embed", "heads", "head_dim")
    axes = {"embed": ("vocab", "embed"), "blocks": {"q": q}, "count": ()}
    check_fits(good, axes, mesh)
    bad = {"embed": shape(33, 7), "blocks": {"q": shape(3, 6, 6, 5)}, "count": shape()}
    with pytest.raises(ConfigError) as error:
        check_fits(bad, axes, mesh)
    not_by_4 = "not a multiple of tensor=4; it fits a split in"
    assert str(error.value).splitlines() == [
        "3 dimensions do not fit mesh fsdp=2 x tensor=4:",
        f"  blocks/q: dimension 2 (heads) is 6, {not_by_4} 1 or 2, or make it 8",
        f"  embed: dimension 0 (vocab) is 33, {not_by_4} 1, or make it 36",
        "  embed: dimension 1 (embed) is 7, not a multiple of fsdp=2; it fits a split in 1, or make it 8",
    ]


def test_check_fits_holds_batches_to_the_same_rule():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with pytest.raises(ConfigError, match="tokens: dimension 0 .batch. is 6, not a multiple of data=2"):
        check_fits({"tokens": shape(6, 4)}, {"tokens": ("batch", None)}, mesh)


def test_check_fits_wants_one_tree():
    mesh = make_mesh(MeshConfig(data=8))
    with pytest.raises(ValueError, match=r"without logical axes: \['a/b'\].*without an array: \['c'\]"):
        check_fits({"a": {"b": shape(2)}}, {"c": ("embed",)}, mesh)
    with pytest.raises(ValueError, match="a: .* does not name the 2 dimensions"):
        check_fits({"a": shape(2, 2)}, {"a": ("embed",)}, mesh)


def test_put_batch_splits_rows_and_copies_scalars():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = {"tokens": np.arange(24).reshape(8, 3).astype(np.int32), "scale": np.float32(2), "none": None}
    placed = put_batch(batch, mesh)
    assert placed["tokens"].sharding == batch_sharding(mesh)
    assert placed["tokens"].sharding.spec == P(("data", "fsdp"))
    assert placed["tokens"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
    assert placed["scale"].sharding.is_fully_replicated
    assert batch_share(mesh) == (0, 1)


def test_put_batch_names_what_does_not_divide():
    with pytest.raises(ConfigError, match=r"multiple of 8 on mesh data=8: image \(6, 2, 2\)"):
        put_batch({"image": np.zeros((6, 2, 2)), "text": np.zeros((16,))}, make_mesh(MeshConfig(data=8)))
