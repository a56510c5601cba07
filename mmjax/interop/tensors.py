"""Named tensors on disk: safetensors directories read one tensor at a time, and written, sharded or not.

Whatever the file format, a reader is a plain mapping from name to something with `shape`, `dtype` and
`__array__`: an array, or a `LazyTensor` that touches the disk only when it is asked for its values.
Files follow https://huggingface.co/docs/safetensors; shards and their index are laid out as transformers
lays them out.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

# What weights are called without their ending: by transformers, and by diffusers.
MODEL, DIFFUSION = "model", "diffusion_pytorch_model"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_SINGLE = "pytorch_model.bin"
# Of other files that torch.save wrote. Not .pt, which is mostly an optimiser's.
PICKLES = (".bin", ".pth", ".ckpt")

# The names that a safetensors header uses for element types. Eight-bit floats come with scales that belong
# to a quantisation scheme, so they are refused rather than read as if they were weights.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class WeightsError(ValueError):
    """Weights on disk that are absent, damaged, or do not fit; the message names the file or tensor."""


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor whose shape and dtype are known and whose values are read by `np.asarray`.

    Attributes:
        shape, dtype: of the array that `read` returns.
        read: no arguments -> the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values; see `numpy.asarray`."""
        return np.array(self.read(), dtype=dtype, copy=copy)


Tensors = Mapping[str, "LazyTensor | np.ndarray"]


def read_directory(directory: str | os.PathLike) -> dict[str, LazyTensor | np.ndarray]:
    """Opens the weights of a directory in transformers' or diffusers' layout; values are read when asked for.

    Looked for, in this order: the index of sharded safetensors, `model.safetensors` (of diffusers
    `diffusion_pytorch_model.safetensors`), any other `*.safetensors` files together, and PyTorch's
    `pytorch_model.bin` (`diffusion_pytorch_model.bin`; sharded or not), else the one file of the directory that ends in
    .bin, .pth or .ckpt. Pickles are read without running code.

    Raises:
        FileNotFoundError: no such directory, or no weights in it.
        WeightsError: shards that the index names are missing, a file is damaged, a name stands in two files.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory")
    for stem in (MODEL, DIFFUSION):
        if (directory / f"{stem}.safetensors.index.json").is_file():
            return _read_shards(directory, f"{stem}.safetensors.index.json", read_safetensors)
        if (directory / f"{stem}.safetensors").is_file():
            return read_safetensors(directory / f"{stem}.safetensors")
    others = sorted(directory.glob("*.safetensors"))
    if others:
        return _merge((path, read_safetensors(path)) for path in others)

    from mmjax.interop.torch_legacy import read_pth

    for name in (TORCH_SINGLE, f"{DIFFUSION}.bin"):
        if (directory / f"{name}.index.json").is_file():
            return _read_shards(directory, f"{name}.index.json", read_pth)
        if (directory / name).is_file():
            return dict(read_pth(directory / name))
    others = sorted(path for path in directory.iterdir() if path.suffix in PICKLES and path.is_file())
    if len(others) == 1:
        return dict(read_pth(others[0]))
    found = ", ".join(sorted(path.name for path in directory.iterdir())[:20]) or "nothing"
    wanted = f"{SINGLE}, {INDEX} or {TORCH_SINGLE}"
    raise FileNotFoundError(f"{directory} holds no weights: expected {wanted}, found {found}")


def read_safetensors(path: str | os.PathLike) -> dict[str, LazyTensor]:
    """Opens one safetensors file; the returned tensors read their values from it when asked.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is truncated or its header is damaged; or an element type is not supported.
    """
    import safetensors

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such safetensors file")
    try:
        handle = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise WeightsError(
            f"{path} ({size:,} bytes) is not a whole safetensors file: {error}. Copy or download it again."
        ) from error
    tensors = {}
    for name in handle.keys():
        header = handle.get_slice(name)
        kind = header.get_dtype()
        if kind not in DTYPES:
            known = ", ".join(DTYPES)
            raise WeightsError(f"{path}: tensor {name!r} has element type {kind}, known are {known}")
        dtype = DTYPES[kind]
        tensors[name] = LazyTensor(tuple(header.get_shape()), dtype, _getter(handle, name, dtype))
    return tensors


def _getter(handle: Any, name: str, dtype: np.dtype) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = handle.get_tensor(name)
        return array if array.dtype == dtype else array.view(dtype)

    return read


def _read_shards(directory: Path, index_name: str, read: Callable[[Path], Tensors]) -> dict[str, Any]:
    index_path = directory / index_name
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index_path}: not an index of shards with a 'weight_map' ({error})") from error
    outside = [name for name in files if Path(name).name != name]
    if outside:
        names = ", ".join(map(repr, outside))
        raise WeightsError(f"{index_path}: shard names must be plain file names, got {names}")
    missing = [name for name in files if not (directory / name).is_file()]
    if missing:
        raise WeightsError(
            f"{directory}: {len(missing)} of {len(files)} shards that {index_name} names are missing: "
            + ", ".join(missing)
        )
    tensors = _merge((directory / name, read(directory / name)) for name in files)
    absent = [f"{name} (in {file})" for name, file in weight_map.items() if name not in tensors]
    if absent:
        raise WeightsError(f"{index_path}: tensors that are not in the shards it names: {', '.join(absent)}")
    return tensors


def _merge(files: Iterable[tuple[Path, Tensors]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for path, tensors in files:
        for name, tensor in tensors.items():
            if name in merged:
                both = f"{origin[name].name} and {path.name}"
                raise WeightsError(f"{path.parent}: tensor {name!r} is in both {both}")
            merged[name] = tensor
            origin[name] = path
    return merged


def write_directory(
    directory: str | os.PathLike,
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_size: int = 5 * 10**9,
    metadata: Mapping[str, str] | None = None,
    stem: str = MODEL,
) -> list[Path]:
    """Writes named arrays as `{stem}.safetensors`, or as shards with an index above `max_shard_size` bytes.

    At most one shard is held in memory. Files are put in place only once they are whole; safetensors and
    indices that stood in the directory before are removed, so that no stale shard is left behind.

    Args:
        directory: made if need be.
        tensors: (name, array) pairs; arrays of any memory layout.
        max_shard_size: bytes of arrays per file; a larger single tensor has a file of its own.
        metadata: string pairs for the header; {"format": "pt"} unless told, which transformers asks for.
        stem: MODEL or DIFFUSION.

    Returns:
        The files written, the index last.

    Raises:
        WeightsError: a name comes twice.
    """
    from safetensors.numpy import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    metadata = dict(metadata or {"format": "pt"})
    parts: list[tuple[Path, list[str]]] = []
    total = 0
    for shard in _shards(tensors, max_shard_size):
        path = directory / f".part-{len(parts):05d}.safetensors.tmp"
        save_file(shard, path, metadata)
        total += sum(array.nbytes for array in shard.values())
        parts.append((path, list(shard)))
    index_path = directory / f"{stem}.safetensors.index.json"
    for stale in [*directory.glob("*.safetensors"), index_path]:
        stale.unlink(missing_ok=True)
    if len(parts) == 1:
        os.replace(parts[0][0], directory / f"{stem}.safetensors")
        return [directory / f"{stem}.safetensors"]
    weight_map: dict[str, str] = {}
    written = []
    for number, (path, names) in enumerate(parts, start=1):
        final = directory / f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        os.replace(path, final)
        weight_map.update(dict.fromkeys(names, final.name))
        written.append(final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [*written, index_path]


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], max_shard_size: int
) -> Iterator[dict[str, np.ndarray]]:
    seen: set[str] = set()
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors:
        if name in seen:
            raise WeightsError(f"tensor {name!r} would be written twice")
        seen.add(name)
        # safetensors writes the buffer as it lies, so a transposed or strided view would come out scrambled;
        # ascontiguousarray alone would turn a scalar into a vector.
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        if shard and size + array.nbytes > max_shard_size:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard
