"""Directories of safetensors: reading, writing, shards, and what is wrong with damaged ones."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmjax.interop.tensors import INDEX, WeightsError, read_directory, read_safetensors, write_directory


def arrays():
    rng = np.random.default_rng(3)
    return {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b.transposed": rng.normal(size=(7, 2)).astype(np.float32).T,
        "b.strided": np.arange(40, dtype=np.int64).reshape(8, 5)[::3, 1::2],
        "c.bf16": rng.normal(size=(4, 3)).astype(ml_dtypes.bfloat16),
        "c.half": rng.normal(size=(2,)).astype(np.float16),
        "scalar": np.asarray(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }


def same(mine, theirs):
    assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("limit", [10**9, 64, 1])
def test_written_directory_reads_back_the_same_for_us_and_for_torch(tmp_path, limit):
    written = write_directory(tmp_path, arrays().items(), max_shard_size=limit)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert (len(written) == 1) == (limit == 10**9)
    tensors = read_directory(tmp_path)
    assert set(tensors) == set(arrays())
    torch_side = {}
    for path in written:
        if path.suffix == ".safetensors":
            torch_side.update(load_file(path))
    for name, array in arrays().items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        same(np.asarray(tensors[name]), array)
        np.testing.assert_array_equal(torch_side[name].double().numpy(), array.astype(np.float64))
    if limit == 64:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays().values())
        sizes = {path.name: sum(t.nbytes for t in load_file(path).values()) for path in written[:-1]}
        assert all(size <= 64 for size in sizes.values())


def test_a_second_write_leaves_no_stale_shard(tmp_path):
    write_directory(tmp_path, arrays().items(), max_shard_size=64)
    write_directory(tmp_path, [("only", np.ones(3, np.float32))])
    assert list(read_directory(tmp_path)) == ["only"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_several_files_of_torch_with_bfloat16(tmp_path):
    saved = {"x": torch.randn(5, 3, dtype=torch.bfloat16), "y": torch.randn(4).half()}
    save_file(saved, tmp_path / "part-1.safetensors")
    save_file({"z": torch.arange(3)}, tmp_path / "part-2.safetensors")
    tensors = read_directory(tmp_path)
    for name in saved:
        mine = np.asarray(tensors[name]).astype(np.float32)
        np.testing.assert_array_equal(mine, saved[name].float().numpy())
    np.testing.assert_array_equal(np.asarray(tensors["z"]), [0, 1, 2])


def test_eight_bit_floats_are_refused(tmp_path):
    save_file({"w": torch.randn(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="tensor 'w' has element type F8_E4M3"):
        read_directory(tmp_path)


def test_same_name_in_two_files(tmp_path):
    for part in "12":
        save_file({"x": torch.ones(2)}, tmp_path / f"part-{part}.safetensors")
    with pytest.raises(WeightsError, match="'x' is in both part-1.safetensors and part-2.safetensors"):
        read_directory(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_file_is_named(tmp_path, keep):
    (path,) = write_directory(tmp_path, arrays().items())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="model.safetensors .* is not a whole safetensors file"):
        read_safetensors(path)


def test_every_missing_shard_is_named(tmp_path):
    written = write_directory(tmp_path, arrays().items(), max_shard_size=1)
    for path in written[1:3]:
        path.unlink()
    with pytest.raises(WeightsError, match="2 of 8 shards .* model-00002-of-00008.*model-00003-of-00008"):
        read_directory(tmp_path)


def test_index_that_lies(tmp_path):
    write_directory(tmp_path, arrays().items(), max_shard_size=1)
    index = json.loads((tmp_path / INDEX).read_text())
    lying = {**index["weight_map"], "ghost": "model-00001-of-00008.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": lying}))
    with pytest.raises(WeightsError, match="ghost"):
        read_directory(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    with pytest.raises(WeightsError, match="plain file names"):
        read_directory(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(WeightsError, match="weight_map"):
        read_directory(tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_directory(tmp_path / "nowhere")
    (tmp_path / "readme.md").write_text("hi")
    with pytest.raises(FileNotFoundError, match="readme.md"):
        read_directory(tmp_path)


def test_a_name_twice_is_not_written(tmp_path):
    with pytest.raises(WeightsError, match="'x' would be written twice"):
        write_directory(tmp_path, [("x", np.ones(2)), ("x", np.ones(2))])


@pytest.mark.parametrize("sharded", [False, True])
def test_directory_of_torch_pickles(tmp_path, sharded):
    state = {"x": torch.randn(3, 2), "y": torch.arange(4)}
    if sharded:
        weight_map = {}
        for name, value in state.items():
            torch.save({name: value}, tmp_path / f"pytorch_model-{name}.bin")
            weight_map[name] = f"pytorch_model-{name}.bin"
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    tensors = read_directory(tmp_path)
    for name, value in state.items():
        np.testing.assert_array_equal(np.asarray(tensors[name]), value.numpy())
