"""The checkpoint reader against torch.save in both containers, and against pickles that want to run code."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from mmjax.interop.tensors import WeightsError
from mmjax.interop.torch_legacy import read_pth

containers = pytest.mark.parametrize("zipped", [False, True], ids=["stream", "zip"])


def state():
    torch.manual_seed(5)
    base = torch.randn(6, 7)
    return collections.OrderedDict(
        plain=torch.randn(3, 5),
        transposed=base.T,
        strided=base[1::2, ::3],
        shared=base[2:4],
        expanded=torch.randn(1, 4).expand(3, 4),
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        half=torch.randn(5).half(),
        bf16=torch.randn(5).bfloat16(),
        double=torch.randn(2).double(),
        long=torch.arange(-3, 3),
        int=torch.arange(3, dtype=torch.int32),
        short=torch.arange(3, dtype=torch.int16),
        int8=torch.arange(-3, 3, dtype=torch.int8),
        byte=torch.arange(3, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        complex=torch.randn(3, dtype=torch.complex64),
    )


def assert_same(mine, theirs):
    assert list(mine) == list(theirs)
    for name, tensor in theirs.items():
        wide = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
        mine_wide = mine[name].astype(np.float32) if tensor.dtype == torch.bfloat16 else mine[name]
        assert mine[name].shape == tuple(tensor.shape)
        assert mine_wide.dtype == wide.numpy().dtype
        np.testing.assert_array_equal(mine_wide, wide.numpy())


@containers
def test_all_dtypes_strides_and_shared_storages(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    mine = read_pth(path)
    assert_same(mine, state())
    assert np.shares_memory(mine["transposed"], mine["strided"])
    assert not mine["plain"].flags.writeable


@containers
def test_state_dict_of_a_module_with_buffers(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    assert_same(read_pth(tmp_path / "m.pth"), module.state_dict())


@containers
def test_checkpoints_of_several_entries(tmp_path, zipped):
    path = tmp_path / "c.pth"
    inner = {"w": torch.randn(2, 3)}
    save = lambda what: torch.save(what, path, _use_new_zipfile_serialization=zipped)  # noqa: E731
    save({"epoch": 3, "state_dict": inner, "note": "x", "lr": [0.1, None]})
    assert_same(read_pth(path), inner)
    save({"model": inner, "ema": {"w": torch.zeros(1)}})
    assert_same(read_pth(path, key="model"), inner)
    with pytest.raises(WeightsError, match="c.pth: say with `key` .*model, ema"):
        read_pth(path)
    with pytest.raises(WeightsError, match="'weights'; there are: model, ema"):
        read_pth(path, key="weights")
    save([torch.zeros(2)])
    with pytest.raises(WeightsError, match="holds a list"):
        read_pth(path)


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def write_zip(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)


def write_stream(path, payload):
    numbers = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(n, 2) for n in numbers) + payload + pickle.dumps([], 2))


@pytest.mark.parametrize("write", [write_stream, write_zip])
@pytest.mark.parametrize(
    "call, name", [(os.system, "posix.system"), (eval, "builtins.eval"), (getattr, "builtins.getattr")]
)
def test_pickled_code_is_refused_by_name_and_not_run(tmp_path, write, call, name):
    flag = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    write(path, pickle.dumps({"w": Evil(call, f"open({str(flag)!r}, 'w')")}, 2))
    with pytest.raises(WeightsError, match=f"evil.pth: .*asks for .*{name.split('.')[1]}"):
        read_pth(path)
    assert not flag.exists()


def test_code_in_the_first_pickle_of_the_stream_is_refused(tmp_path):
    flag = tmp_path / "ran"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(os.mkdir, str(flag)), 2))
    with pytest.raises(WeightsError, match="mkdir"):
        read_pth(tmp_path / "evil.pth")
    assert not flag.exists()


@pytest.mark.parametrize(
    "name", ["torch.load", "torch._utils._rebuild_device_tensor_from_numpy", "numpy.ndarray"]
)
def test_other_names_of_torch_are_refused(tmp_path, name):
    module, attribute = name.rsplit(".", 1)
    write_zip(tmp_path / "x.pth", f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(WeightsError, match=name):
        read_pth(tmp_path / "x.pth")


@pytest.mark.parametrize("write", [write_stream, write_zip])
@pytest.mark.parametrize(
    "target", ["ctorch._utils\n_rebuild_tensor_v2\n", "ctorch\nFloatStorage\n", "ccollections\nOrderedDict\n"]
)
def test_a_pickle_cannot_set_attributes_on_what_is_allowed(tmp_path, write, target):
    state = b"}S'__call__'\nI1\nsb."  # a dict {"__call__": 1}, then BUILD on the object below it
    write(tmp_path / "x.pth", target.encode() + state)
    with pytest.raises(WeightsError):
        read_pth(tmp_path / "x.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "fine.pth")
    assert set(read_pth(tmp_path / "fine.pth")) == {"weight", "bias"}


@containers
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, zipped, keep):
    path = tmp_path / "weights.pth"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(WeightsError, match="weights.pth"):
        read_pth(path)


@containers
def test_flipped_bytes_never_crash_the_reader(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 4):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            for array in read_pth(path).values():
                array.sum()
        except WeightsError:
            continue


@pytest.mark.parametrize(
    "offset, shape, stride", [(0, (5,), (1,)), (2, (1,), (1,)), (-1, (1,), (1,)), (0, (2,), (-1,))]
)
def test_tensors_outside_their_storage_are_refused(tmp_path, offset, shape, stride):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 2) if value is marker else None

    marker = object.__new__(Evil)
    path = tmp_path / "x.pth"
    rebuild = Evil(
        torch._utils._rebuild_tensor_v2, marker, offset, shape, stride, False, collections.OrderedDict()
    )
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as stream:
            Pickler(stream, 2).dump({"w": rebuild})
        archive.writestr("archive/data/0", np.ones(2, np.float32).tobytes())
    with pytest.raises(WeightsError, match="x.pth"):
        read_pth(path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        read_pth(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match="text.pth: neither a zip archive nor a pickle"):
        read_pth(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(WeightsError, match="other.zip: a zip archive"):
        read_pth(tmp_path / "other.zip")
