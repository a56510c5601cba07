"""PyTorch checkpoints (.pth, .pt, .bin) read without torch and without running what is pickled in them.

A checkpoint is a pickle that calls functions by name. Here every name is looked up in a short list of
stand-ins that only note which bytes a tensor is made of; any other name is an error, before anything is
called. Two containers are read: the stream of pickles that torch wrote before version 1.6, and the zip
archive since. The layout follows torch/serialization.py and torch/_utils.py.
"""

import collections
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax.interop.tensors import WeightsError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

STORAGE_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
}


# The stand-ins are tuples and slotless objects because a pickle may also try to set attributes on what it
# has built: on these that is an error.
class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    """Where a tensor's elements lie: the key of a run of bytes, and the first element in it."""

    key: str
    dtype: np.dtype
    start: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor is built from something that is no storage")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or any(not isinstance(n, int) or n < 0 for n in numbers):
            raise pickle.UnpicklingError(f"a tensor has offset {offset}, shape {shape}, strides {strides}")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows the few names that a state dict needs, as stand-ins, and refuses every other."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not among the names that tensors need; it was not run"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[1], _StorageType)):
            raise pickle.UnpicklingError(f"unknown persistent object {pid!r}")
        view = pid[5] if len(pid) > 5 else None
        key, dtype = str(pid[2]), pid[1].dtype
        self.dtypes[key] = dtype
        return _Storage(key, dtype, int(view[1]) if view else 0)


def read_pth(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint that `torch.save` wrote, in either container.

    Args:
        path: the file.
        key: which entry holds the state dict when the file is a dict of several ("model", "state_dict", ...).
            None takes the file's own tensors, or those of its only entry that has any.

    Returns:
        Name -> read-only array that is mapped from the file, in the strides it was saved with (tensors
        that shared a storage still do). Values that are no tensors are left out.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the pickle asks for a name that is not allowed, the file is damaged or of another
            kind, or it is unclear which entry is meant.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            read = _read_zip if data[:4] == b"PK\x03\x04" else _read_stream
            tree, locate = read(file, data)
        state = _state_dict(tree, key)
        return {name: _array(tensor, data, locate) for name, tensor in state.items()}
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: not read as a PyTorch checkpoint: {error}") from error
    except Exception as error:
        # A damaged pickle or archive may fail in any of Python's ways; to the caller they all mean the same.
        raise WeightsError(f"{path}: damaged PyTorch checkpoint ({type(error).__name__}: {error})") from error


# Finds a storage's bytes: (key, dtype) -> (offset in the file, number of elements).
_Locate = Callable[[str, np.dtype], tuple[int, int]]


def _read_stream(file: IO[bytes], data: mmap.mmap) -> tuple[Any, _Locate]:
    """The container of torch < 1.6: magic number, protocol, system info, object, keys, then each storage."""
    if data[:1] != b"\x80":
        raise WeightsError("neither a zip archive nor a pickle")
    magic, protocol, system = (_Unpickler(file).load() for _ in range(3))
    if magic != MAGIC_NUMBER or protocol != LEGACY_PROTOCOL:
        raise WeightsError("a pickle, but not one that torch.save wrote")
    if not system.get("little_endian", True):
        raise WeightsError("written on a big-endian machine, which is not supported")
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    places: dict[str, tuple[int, int]] = {}
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        if key not in unpickler.dtypes or count < 0:
            raise WeightsError(f"storage {key!r} of {count} elements is in the file but not in its pickle")
        places[key] = (file.tell(), count)
        file.seek(count * unpickler.dtypes[key].itemsize, os.SEEK_CUR)
    return tree, lambda key, dtype: places[key]


def _read_zip(file: IO[bytes], data: mmap.mmap) -> tuple[Any, _Locate]:
    """The container since torch 1.6: a zip of `NAME/data.pkl` and one `NAME/data/KEY` for each storage."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(f"a zip archive with {len(pickles)} entries data.pkl; torch.save writes one")
        prefix = pickles[0].removesuffix("data.pkl")
        order = entries.get(prefix + "byteorder")
        if order is not None and archive.read(order) != b"little":
            raise WeightsError("written on a big-endian machine, which is not supported")
        with archive.open(pickles[0]) as stream:
            tree = _Unpickler(stream).load()

    def locate(key: str, dtype: np.dtype) -> tuple[int, int]:
        info = entries[f"{prefix}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED:
            raise WeightsError(f"entry {info.filename} is compressed; torch.save stores tensors as they are")
        name_length, extra_length = struct.unpack_from("<HH", data, info.header_offset + 26)
        return info.header_offset + 30 + name_length + extra_length, info.file_size // dtype.itemsize

    return tree, locate


def _state_dict(tree: Any, key: str | None) -> dict[str, _Tensor]:
    def tensors(value: Any) -> dict[str, _Tensor]:
        if not isinstance(value, Mapping):
            return {}
        return {str(name): item for name, item in value.items() if isinstance(item, _Tensor)}

    if not isinstance(tree, Mapping):
        raise WeightsError(f"holds a {type(tree).__name__}, not a dict of tensors")
    nested = {str(name): tensors(value) for name, value in tree.items() if tensors(value)}
    if key is not None:
        if key not in nested:
            there = ", ".join(nested) or "none"
            raise WeightsError(f"has no dict of tensors under {key!r}; there are: {there}")
        return nested[key]
    if own := tensors(tree):
        return own
    if len(nested) != 1:
        there = ", ".join(nested) or "none"
        raise WeightsError(f"say with `key` which dict of tensors to read; there are: {there}")
    return next(iter(nested.values()))


def _array(tensor: _Tensor, data: mmap.mmap, locate: _Locate) -> np.ndarray:
    storage, size = tensor.storage, tensor.storage.dtype.itemsize
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, storage.dtype)
    begin, count = locate(storage.key, storage.dtype)
    first = storage.start + tensor.offset
    last = first + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if last >= count or begin + count * size > len(data):
        raise WeightsError(
            f"a tensor of shape {tensor.shape} needs {last + 1} elements of storage {storage.key!r}, "
            f"which has {count}; the file may be truncated"
        )
    strides = tuple(stride * size for stride in tensor.strides)
    return np.ndarray(tensor.shape, storage.dtype, data, begin + first * size, strides)
