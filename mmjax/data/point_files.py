"""Files of points: .npy, .npz, .ply, .obj, .off and plain text, as coordinates, colours and normals.

Turk, 1994 ("The PLY polygon file format"); Wavefront's OBJ; the Object File Format of Geomview.
"""

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np

# What may stand behind x, y, z, with the names that files give them; each has three columns.
PLY_NAMES = {"xyz": ("x", "y", "z"), "rgb": ("red", "green", "blue"), "normals": ("nx", "ny", "nz")}
NPZ_NAMES = {"xyz": ("xyz", "points", "pos"), "rgb": ("rgb", "colors", "color"), "normals": ("normals", "normal")}
PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "<i1"),
    **dict.fromkeys(("uchar", "uint8"), "<u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}


class PointError(ValueError):
    """A cloud of points that cannot be read, or a recipe that is not understood."""


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
    """N points.

    Attributes:
        xyz: float32 [N, 3].
        rgb: float32 [N, 3] in 0..1, or None.
        normals: float32 [N, 3], or None.
    """

    xyz: np.ndarray
    rgb: np.ndarray | None = None
    normals: np.ndarray | None = None


def read_points(data: bytes, suffix: str, label: str, columns: tuple[str, ...] = ("rgb",)) -> Cloud:
    """Bytes of a file -> Cloud.

    Args:
        data: the whole file.
        suffix: its kind: ".npy", ".npz", ".ply", ".obj", ".off", ".xyz", ".txt" or ".pts".
        label: what error messages call it.
        columns: what stands behind x, y, z where the file does not say: "rgb", "normals", or both in order.

    Raises:
        PointError: another kind of file, a damaged one, or one without points.
    """
    if suffix not in READERS:
        raise PointError(f"{label}: files of points end in {', '.join(READERS)}, not in {suffix!r}")
    try:
        return READERS[suffix](data, label, columns)
    except PointError:
        raise
    except (ValueError, IndexError, KeyError, EOFError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise PointError(f"{label}: damaged {suffix} file of {len(data)} bytes ({error})") from error


def from_columns(values: np.ndarray, label: str, columns: tuple[str, ...] = ("rgb",)) -> Cloud:
    """An array [N, 3], or wider by three for each of `columns` there is -> Cloud.

    Raises:
        PointError: another shape, no points, or numbers that are not finite.
    """
    values = np.asarray(values)
    wanted = [3 + 3 * count for count in range(len(columns) + 1)]
    if values.ndim != 2 or values.shape[1] not in wanted or values.dtype.kind not in "fiu":
        widths, names = " | ".join(map(str, wanted)), ", ".join(("xyz", *columns))
        raise PointError(
            f"{label}: expected numbers [N, {widths}] of {names}, got {values.dtype} {list(values.shape)}"
        )
    names = ("xyz", *columns)[: values.shape[1] // 3]
    return _cloud({name: values[:, 3 * at : 3 * at + 3] for at, name in enumerate(names)}, label)


def _cloud(parts: dict[str, np.ndarray], label: str) -> Cloud:
    found = {}
    for name, values in parts.items():
        if values.ndim != 2 or values.shape[1] != 3 or len(values) != len(parts["xyz"]):
            raise PointError(f"{label}: {name} has shape {list(values.shape)}, expected [{len(parts['xyz'])}, 3]")
        whole = values.dtype.kind in "iu"
        values = values.astype(np.float32)
        bad = int((~np.isfinite(values)).any(1).sum())
        if bad:
            raise PointError(f"{label}: {bad} of {len(values)} points have {name} that are not finite")
        # Colours are whole numbers to 255, or floats to 1; some writers put the former in the type of the latter.
        found[name] = values / 255 if name == "rgb" and (whole or values.max(initial=0) > 1) else values
    if not len(found["xyz"]):
        raise PointError(f"{label}: no points")
    return Cloud(**found)


def _npy(data: bytes, label: str, columns: tuple[str, ...]) -> Cloud:
    return from_columns(np.load(io.BytesIO(data), allow_pickle=False), label, columns)


def _npz(data: bytes, label: str, columns: tuple[str, ...]) -> Cloud:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = dict(archive)
    if len(arrays) == 1:
        return from_columns(next(iter(arrays.values())), label, columns)
    parts = {part: arrays[name] for part, names in NPZ_NAMES.items() for name in names if name in arrays}
    if "xyz" not in parts:
        raise PointError(f"{label}: no array named {' or '.join(NPZ_NAMES['xyz'])} among {sorted(arrays)}")
    if parts["xyz"].ndim == 2 and parts["xyz"].shape[1] > 3:
        return from_columns(parts["xyz"], label, columns)
    return _cloud(parts, label)


def _rows(lines: list[list[str]], label: str, columns: tuple[str, ...]) -> Cloud:
    widths = {len(line) for line in lines}
    if len(widths) > 1:
        raise PointError(f"{label}: its rows have {' and '.join(map(str, sorted(widths)))} numbers")
    if not lines:
        raise PointError(f"{label}: no points")
    return from_columns(np.array(lines, np.float64), label, columns)


def _text(data: bytes, label: str, columns: tuple[str, ...]) -> Cloud:
    lines = [line.split("#")[0].replace(",", " ").split() for line in data.decode("utf-8").splitlines()]
    lines = [line for line in lines if line]
    # Some writers put the number of points first.
    return _rows(lines[1:] if lines and len(lines[0]) == 1 else lines, label, columns)


def _obj(data: bytes, label: str, columns: tuple[str, ...]) -> Cloud:
    lines = (line.split("#")[0].split() for line in data.decode("utf-8").splitlines())
    vertices = [line[1:] for line in lines if line[:1] == ["v"]]
    # A fourth number is a weight; six are coordinates and colour.
    return _rows([line[:3] if len(line) == 4 else line for line in vertices], label, ("rgb",))


def _off(data: bytes, label: str, columns: tuple[str, ...]) -> Cloud:
    lines = [line.split("#")[0] for line in data.decode("utf-8").splitlines()]
    words = [line.split() for line in lines if line.strip()]
    if not words or not words[0][0].startswith("OFF"):
        raise PointError(f"{label}: an .off file begins with OFF")
    # The counts stand in the next line, or behind OFF, with or without a blank.
    first = [word for word in (words[0][0][3:], *words[0][1:]) if word]
    counts, vertices = (first, words[1:]) if first else (words[1], words[2:])
    count = int(counts[0])
    if len(vertices) < count:
        raise PointError(f"{label}: {len(vertices)} of {count} vertices are there")
    return _rows([line[:3] for line in vertices[:count]], label, ())


def _ply(data: bytes, label: str, columns: tuple[str, ...]) -> Cloud:
    header, end, body = data.partition(b"end_header")
    lines = [line.split() for line in header.decode("ascii").splitlines()]
    if not end or lines[0] != ["ply"]:
        raise PointError(f"{label}: not a .ply file, or one without the end of its header")
    body = body[body.index(b"\n") + 1 :]
    encoding = next((line[1] for line in lines if line[:1] == ["format"]), "none")
    if encoding not in ("ascii", "binary_little_endian"):
        raise PointError(f"{label}: .ply format {encoding} is not supported, only ascii and binary_little_endian")
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in lines:
        if line[:1] == ["element"]:
            elements.append((line[1], int(line[2]), []))
        elif line[:1] == ["property"]:
            elements[-1][2].append((line[-1], line[1]))
    for name, count, properties in elements:
        if any(kind == "list" for _, kind in properties):
            raise PointError(f"{label}: lists of the element {name!r} stand before the vertices, or there are none")
        dtype = np.dtype([(key, PLY_TYPES[kind]) for key, kind in properties])
        rows, size = body.split(b"\n"), dtype.itemsize * count
        if name != "vertex":
            body = b"\n".join(rows[count:]) if encoding == "ascii" else body[size:]
            continue
        if encoding == "ascii":
            texts = [row.split() for row in rows[:count] if row.strip()]
            if len(texts) < count:
                raise PointError(f"{label}: {len(texts)} of {count} vertices are there")
            table = np.array([tuple(map(float, row)) for row in texts], [(key, "f8") for key, _ in properties])
        else:
            if len(body) < size:
                raise PointError(f"{label}: {len(body) // dtype.itemsize} of {count} vertices are there")
            table = np.frombuffer(body, dtype, count)
        kinds = dict(properties)
        parts = {}
        for part, names in PLY_NAMES.items():
            if all(key in kinds for key in names):
                parts[part] = np.stack([table[key] for key in names], axis=1)
                if part == "rgb" and PLY_TYPES[kinds["red"]] == "<u1":
                    parts[part] = parts[part].astype(np.uint8)
        if "xyz" not in parts:
            raise PointError(f"{label}: its vertices have {', '.join(kinds)}, but no x, y, z")
        return _cloud(parts, label)
    raise PointError(f"{label}: no vertices among its elements")


READERS = {
    ".npy": _npy,
    ".npz": _npz,
    ".ply": _ply,
    ".obj": _obj,
    ".off": _off,
    ".xyz": _text,
    ".txt": _text,
    ".pts": _text,
}


def suffix_of(path: str) -> str:
    """The suffix that says how a file is read, in small letters."""
    return Path(path).suffix.lower()
