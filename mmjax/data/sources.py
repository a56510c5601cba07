"""Random-access sources of records: JSON lines, JSON arrays, ArrayRecord files, TensorFlow Datasets, lists.

A source has a length, gives record i as a plain dict by `source[i]`, and names it by `source.name(i)` (the
file and line to look at when the record is bad). Sources are picklable, so that worker processes open
their own files, and none loads its records into memory.
"""

import glob
import json
import mmap
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class SourceError(ValueError):
    """A source or a record that cannot be read; the message names the file and the place in it."""


class Source(Protocol):
    """What the pipeline asks of a source of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str:
        """Where record `index` stands, for messages."""


def open_source(spec: Any, data_dir: str | os.PathLike | None = None) -> Source:
    """Opens the source that `spec` means.

    Args:
        spec: "x.jsonl" (or .ndjson), "x.json" (an array of objects), "x.array_record" or "x.arrayrecord"
            (shards such as "x.array_record-00000-of-00004" and patterns with * too), "tfds:name/split", a
            sequence of dicts, or a source, which is returned as it is.
        data_dir: where prepared TensorFlow Datasets lie; None is their own default.

    Raises:
        FileNotFoundError: naming the path.
        SourceError: a name that means none of these.
    """
    if isinstance(spec, (str, os.PathLike)):
        path = os.fspath(spec)
        if path.startswith("tfds:"):
            name, slash, split = path[len("tfds:") :].rpartition("/")
            if not slash:
                raise SourceError(f'{path}: expected "tfds:name/split", such as "tfds:coco_captions/train"')
            return TfdsSource(name, split, data_dir)
        if re.search(r"\.(jsonl|ndjson|json)$", path):
            return JsonlSource(path)
        if re.search(r"\.array_?record(-\d+-of-\d+|[^/]*\*[^/]*)?$", path):
            return ArrayRecordSource(path)
        raise SourceError(f"{path}: expected .jsonl, .ndjson, .json, .array_record or tfds:name/split")
    if hasattr(spec, "name") and hasattr(spec, "__getitem__"):
        return spec
    if isinstance(spec, Sequence):
        return ListSource(spec)
    raise SourceError(f"no source can be made of {type(spec).__name__}")


class ListSource:
    """Records that are in memory already."""

    def __init__(self, records: Sequence[Mapping[str, Any]], label: str = "record"):
        self._records, self._label = records, label

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._records[index])

    def name(self, index: int) -> str:
        """For instance "record 3"."""
        return f"{self._label} {index}"


class JsonlSource:
    """One JSON object per line, or a `.json` file that is one array of objects (as LLaVA's data are).

    Only the byte range of each record is kept in memory. Blank lines are skipped. A bad line is an error
    when it is read, not before; a `.json` file that is cut off is an error at once.

    Raises:
        FileNotFoundError: naming the path.
        SourceError: no record in it, or (when reading) a record that is no JSON object.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"{self.path}: no such data file")
        self._is_array = self.path.endswith(".json")
        self._file = None
        if os.path.getsize(self.path) == 0:
            raise SourceError(f"{self.path}: the file is empty")
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._spans, self._lines = _array_spans(data, self.path) if self._is_array else _line_spans(data)
        if not len(self._spans):
            raise SourceError(f"{self.path}: the file holds no record")

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, stop = (int(value) for value in self._spans[index])
        if self._file is None:
            self._file = open(self.path, "rb")  # kept open, each process its own
        data = os.pread(self._file.fileno(), stop - start, start)
        try:
            record = json.loads(data)
        except ValueError as error:
            raise SourceError(f"{self.name(index)}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise SourceError(f"{self.name(index)}: expected a JSON object, got {type(record).__name__}")
        return record

    def name(self, index: int) -> str:
        """For instance "train.jsonl line 7", or "train.json record 7" (from 0) of an array."""
        return f"{self.path} record {index}" if self._is_array else f"{self.path} line {self._lines[index]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


class ArrayRecordSource:
    """ArrayRecord files whose records were written by `write_array_record` (see `encode_record`).

    Args:
        paths: one path or several; a `*` in a path stands for all shards that match, in sorted order.

    Raises:
        FileNotFoundError: naming the path.
        SourceError: a damaged file, or (when reading) a damaged record.
    """

    def __init__(self, paths: str | os.PathLike | Sequence[str | os.PathLike]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from array_record.python.array_record_module import ArrayRecordReader

        self.paths: list[str] = []
        for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
            path = os.fspath(path)
            found = sorted(glob.glob(path)) if "*" in path else [path]
            if not found or not os.path.isfile(found[0]):
                raise FileNotFoundError(f"{path}: no such data file")
            self.paths += found
        self._starts = [0]
        for path in self.paths:
            try:
                reader = ArrayRecordReader(path)
                self._starts.append(self._starts[-1] + reader.num_records())
                reader.close()
            except RuntimeError as error:
                raise SourceError(f"{path}: not a whole ArrayRecord file ({error})") from error
        self._records = ArrayRecordDataSource(self.paths)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return decode_record(self._records[index])
        except (RuntimeError, SourceError) as error:
            raise SourceError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """For instance "a.array_record record 7", counted from 0 in that file."""
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self.paths[file]} record {index - self._starts[file]}"


class TfdsSource:
    """A prepared TensorFlow Dataset, read through `tfds.data_source` without TensorFlow.

    It must have been prepared with `file_format="array_record"`. Images come as the encoded bytes of the
    file (so that `open_image` decodes them, with its limits), texts as str, numbers as Python numbers.

    Raises:
        ImportError: the extra `tfds` is not installed.
        SourceError: no such prepared dataset or split.
    """

    def __init__(self, name: str, split: str, data_dir: str | os.PathLike | None = None):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ImportError(f"tfds:{name} needs tensorflow-datasets: pip install 'mmjax[tfds]'") from error
        self._spec = (name, split, None if data_dir is None else os.fspath(data_dir))
        try:
            builder = tfds.builder(name, data_dir=self._spec[2])
            self._features = builder.info.features
            raw = _skip_image_decoding(self._features, tfds)
            self._records = builder.as_data_source(split=split, decoders=raw or None)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise SourceError(
                f"tfds:{name}/{split} in {self._spec[2] or 'the default data_dir'}: {reason} "
                f'Prepare it with tfds.builder("{name}", file_format="array_record").download_and_prepare()'
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return _plain(self._records[index], self._features)
        except RuntimeError as error:
            raise SourceError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """For instance "tfds:coco_captions/train record 7"."""
        return f"tfds:{self._spec[0]}/{self._spec[1]} record {index}"

    def __reduce__(self):
        return TfdsSource, self._spec


# --- one record as bytes ---------------------------------------------------------------------------------

_MAGIC = b"MMR1"


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Encodes a JSON-like dict that may also hold bytes and numeric arrays, at any depth.

    Layout: the 4 bytes "MMR1"; the length of the header, uint32 little-endian; the header, UTF-8 JSON
    {"record": ..., "blobs": [length, ...]}; the blobs one after the other. In "record", bytes stand as
    {"$bytes": number of the blob} and arrays as {"$array": number, "dtype": "<f4", "shape": [...]}. Any
    language with a JSON parser reads it, and nothing in it is ever executed.

    Raises:
        SourceError: a value of another type, or a key that starts with "$".
    """
    blobs: list[bytes] = []

    def strip(value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str) or key.startswith("$"):
                    raise SourceError(f"{where}: key {key!r} must be a string that does not start with $")
            return {key: strip(item, f"{where}.{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [strip(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, (bytes, bytearray, memoryview)):
            blobs.append(bytes(value))
            return {"$bytes": len(blobs) - 1}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = value.astype(value.dtype.newbyteorder("<"), order="C", copy=False)
            blobs.append(value.tobytes())
            return {"$array": len(blobs) - 1, "dtype": value.dtype.str, "shape": list(value.shape)}
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        raise SourceError(f"{where}: cannot store a {type(value).__name__}")

    body = strip(record, "record")
    header = json.dumps({"record": body, "blobs": [len(blob) for blob in blobs]}, ensure_ascii=False).encode()
    return b"".join([_MAGIC, struct.pack("<I", len(header)), header, *blobs])


def decode_record(data: bytes) -> dict[str, Any]:
    """The inverse of `encode_record`; tuples come back as lists, arrays read-only.

    Raises:
        SourceError: `data` is not such a record, or not a whole one.
    """
    if data[:4] != _MAGIC or len(data) < 8:
        raise SourceError(f"not a record of this format: it starts with {data[:4]!r}, expected {_MAGIC!r}")
    end = 8 + struct.unpack("<I", data[4:8])[0]
    try:
        header = json.loads(data[8:end])
        record, lengths = header["record"], header["blobs"]
        bounds = np.cumsum([end, *lengths]).tolist()
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"damaged record header ({error})") from error
    if bounds[-1] != len(data) or any(length < 0 for length in lengths) or not isinstance(record, dict):
        raise SourceError(f"damaged record: {len(data)} bytes, its header says {bounds[-1]}")

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            if "$bytes" in value:
                return data[bounds[value["$bytes"]] : bounds[value["$bytes"] + 1]]
            if "$array" in value:
                blob = data[bounds[value["$array"]] : bounds[value["$array"] + 1]]
                dtype = np.dtype(value["dtype"])
                if dtype.kind not in "biuf":
                    raise SourceError(f"damaged record: array of dtype {dtype}")
                return np.frombuffer(blob, dtype).reshape(value["shape"])
            return {key: fill(item) for key, item in value.items()}
        return [fill(item) for item in value] if isinstance(value, list) else value

    try:
        return fill(record)
    except (IndexError, TypeError, KeyError, ValueError) as error:
        raise SourceError(f"damaged record ({error})") from error


def write_array_record(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes records (see `encode_record`) to one ArrayRecord file; returns how many.

    The file appears under its name only when it is whole.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    count = 0
    try:
        for count, record in enumerate(records, 1):  # noqa: B007 -- the last count is the result
            writer.write(encode_record(record))
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise
    writer.close()
    os.replace(partial, path)
    return count


# --- finding the records in a JSON file ------------------------------------------------------------------


def _line_spans(data: mmap.mmap) -> tuple[np.ndarray, np.ndarray]:
    """(start, stop) bytes and line numbers from 1 of the lines that are not blank."""
    spans, lines = [], []
    start = 3 if data[:3] == b"\xef\xbb\xbf" else 0
    number, size = 0, len(data)
    while start < size:
        number += 1
        stop = data.find(b"\n", start)
        stop = size if stop < 0 else stop
        if data[start : min(stop, start + 1)].strip() or data[start:stop].strip():
            spans.append((start, stop))
            lines.append(number)
        start = stop + 1
    return np.asarray(spans, np.int64).reshape(-1, 2), np.asarray(lines, np.int64)


# Strings are matched whole, so that a bracket inside one is not taken for structure.
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}"]', re.DOTALL)


def _array_spans(data: mmap.mmap, path: str) -> tuple[np.ndarray, None]:
    """(start, stop) bytes of the objects of a top-level JSON array, found without parsing them."""
    spans: list[tuple[int, int]] = []
    depth = start = 0
    for match in _STRUCTURE.finditer(data):
        token = match.group()[:1] if match.end() - match.start() == 1 else b'"'
        if depth == 0 and (token != b"[" or start < 0):
            place = f"found {token.decode()} at byte {match.start()}"
            raise SourceError(f"{path}: expected one array of objects; {place}")
        if token in (b"{", b"["):
            if depth == 1:
                if token == b"[":
                    raise SourceError(f"{path}: record {len(spans)} at byte {match.start()} is not an object")
                start = match.start()
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 1:
                spans.append((start, match.end()))
            elif depth == 0:
                start = -1
        elif depth == 1 or match.end() - match.start() == 1:
            raise SourceError(f"{path}: stray text after record {len(spans) - 1}, at byte {match.start()}")
    if depth or start >= 0:
        raise SourceError(f"{path}: the array does not end (after {len(spans)} whole records): cut off?")
    return np.asarray(spans, np.int64).reshape(-1, 2), None


# --- TensorFlow Datasets ---------------------------------------------------------------------------------


def _skip_image_decoding(features: Any, tfds: Any) -> dict[str, Any]:
    """Decoders that leave every image feature as its encoded bytes."""
    skip = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            skip[key] = tfds.decode.SkipDecoding()
        elif isinstance(feature, tfds.features.FeaturesDict):
            skip[key] = _skip_image_decoding(feature, tfds)
    return {key: value for key, value in skip.items() if value}


def _plain(value: Any, feature: Any) -> Any:
    """A decoded example as plain Python: str for texts, numbers for scalars, lists for sequences of texts."""
    if isinstance(value, Mapping):
        inner = getattr(feature, "feature", feature)
        return {key: _plain(item, inner[key]) for key, item in value.items()}
    kind = type(getattr(feature, "feature", feature)).__name__
    if kind in ("Text", "Translation"):
        if isinstance(value, bytes):
            return value.decode()
        return [_plain(item, feature) for item in value]
    return value.item() if isinstance(value, np.generic) else value
