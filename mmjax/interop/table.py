"""One table per model family, read in both directions: our leaves and their tensors, with the layout between.

A row says which leaf of ours is which tensor of theirs and how the axes differ. Import and export walk the
same rows, so they cannot drift apart. Leaves of ours that stack layers name the layer with "{i}" on their
side (and a second stacked axis, such as experts, with "{j}").
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.interop.tensors import LazyTensor, Tensors, WeightsError
from mmjax.paths import flatten, unflatten

Shape = tuple[int, ...]


class Transform(Protocol):
    """An invertible change of layout between one tensor of ours (one layer of it) and one of theirs."""

    def theirs_shape(self, ours: Shape) -> Shape:
        """The shape on their side of a tensor that has shape `ours` on our side."""

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        """Their tensor in our layout, with shape `ours`."""

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Our tensor in their layout."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """The same array on both sides."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return ours

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours


@dataclasses.dataclass(frozen=True)
class Linear:
    """Ours [*in, *out], theirs (torch.nn.Linear) [prod(out), prod(in)]; `in_dims` counts the axes of *in.

    Linear(1) covers q, k, v kernels [D, H, C] and plain [D, F]; Linear(2) covers o kernels [H, C, D].
    """

    in_dims: int = 1

    def theirs_shape(self, ours: Shape) -> Shape:
        return (math.prod(ours[self.in_dims :]), math.prod(ours[: self.in_dims]))

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs.T.reshape(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(self.theirs_shape(ours.shape)[::-1]).T


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Ours [*in, *out], theirs (GPT-2's Conv1D) [prod(in), prod(out)]; `in_dims` counts the axes of *in."""

    in_dims: int = 1

    def theirs_shape(self, ours: Shape) -> Shape:
        return (math.prod(ours[: self.in_dims]), math.prod(ours[self.in_dims :]))

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs.reshape(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(self.theirs_shape(ours.shape))


@dataclasses.dataclass(frozen=True)
class Flat:
    """Ours of any shape, theirs the same elements in one axis: biases [H, C] against [H * C]."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return (math.prod(ours),)

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs.reshape(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Conv:
    """Ours [*window, in, out], theirs (torch.nn.Conv1d/2d/3d) [out, in, *window]; depthwise kernels too."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return (ours[-1], ours[-2], *ours[:-2])

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return np.moveaxis(theirs, (0, 1), (-1, -2))

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return np.moveaxis(ours, (-1, -2), (0, 1))


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """Ours [in, out], theirs (a torch.nn.Conv2d with a window of one place) [out, in, 1, 1]."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return (*ours[::-1], 1, 1)

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs.reshape(ours[::-1]).T

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.T[..., None, None]


@dataclasses.dataclass(frozen=True)
class Squeezed:
    """Theirs has further axes of length 1 at `axes` (counted in theirs)."""

    axes: tuple[int, ...]

    def theirs_shape(self, ours: Shape) -> Shape:
        shape = list(ours)
        for axis in self.axes:
            shape.insert(axis, 1)
        return tuple(shape)

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs.reshape(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(self.theirs_shape(ours.shape))


@dataclasses.dataclass(frozen=True)
class HalfSplitRotary:
    """Their q or k (GGUF llama) has rotary pairs side by side (0 1, 2 3, ...), ours half a head apart.

    Works on the rows of their matrix or bias, before the transform `inner`.
    """

    head_dim: int
    inner: Transform

    def theirs_shape(self, ours: Shape) -> Shape:
        return self.inner.theirs_shape(ours)

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        pairs = theirs.reshape(-1, self.head_dim // 2, 2, *theirs.shape[1:])
        return self.inner.to_ours(pairs.swapaxes(1, 2).reshape(theirs.shape), ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        theirs = self.inner.to_theirs(ours)
        halves = theirs.reshape(-1, 2, self.head_dim // 2, *theirs.shape[1:])
        return halves.swapaxes(1, 2).reshape(theirs.shape)


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several pieces that their tensor holds one after the other on one axis.

    Rows of all the pieces name the same tensor (a fused in_proj holds q, k and v).

    Attributes:
        index: which piece, from 0.
        sizes: length of every piece on that axis.
        inner: the transform of the piece itself.
        axis: which axis of theirs.
        groups: how many times the pieces take turns, each time with an equal share of every piece (the q, k
            and v of one head, then those of the next).
    """

    index: int
    sizes: tuple[int, ...]
    inner: Transform
    axis: int = 0
    groups: int = 1

    def theirs_shape(self, ours: Shape) -> Shape:
        shape = list(self.inner.theirs_shape(ours))
        shape[self.axis] = sum(self.sizes)
        return tuple(shape)

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        ends = np.cumsum(self.sizes)[:-1] // self.groups
        piece = np.split(self._turns(theirs), ends, axis=self.axis + 1)[self.index]
        return self.inner.to_ours(self._flat(piece), ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return self.inner.to_theirs(ours)

    def join(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """Their tensor of all the pieces, as `to_theirs` gives them, in the order of their index."""
        return self._flat(np.concatenate([self._turns(piece) for piece in pieces], axis=self.axis + 1))

    def _turns(self, array: np.ndarray) -> np.ndarray:
        at = self.axis
        return array.reshape(*array.shape[:at], self.groups, -1, *array.shape[at + 1 :])

    def _flat(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(*array.shape[: self.axis], -1, *array.shape[self.axis + 2 :])


IDENTITY = Identity()
LINEAR = Linear(1)
FLAT = Flat()
CONV = Conv()


@dataclasses.dataclass(frozen=True)
class Row:
    """One correspondence.

    Attributes:
        ours: path of our leaf, "backbone/blocks/attn/q/kernel".
        theirs: name of their tensor. With "{i}", our leaf has a leading layer axis and every layer is a
            tensor of theirs; with "{j}" too, a second one.
        transform: the change of layout, of one layer where they are stacked.
        layers: their numbers of our layers, where these are not 0, 1, 2, ... (only every second has the part).
    """

    ours: str
    theirs: str
    transform: Transform = IDENTITY
    layers: tuple[int, ...] | None = None


Rewrite = tuple[str, str]


def rename(tensors: Tensors, rewrites: Iterable[Rewrite]) -> dict[str, LazyTensor | np.ndarray]:
    """Brings spellings of names onto one: every (pattern, replacement) is applied in turn with `re.sub`.

    Raises:
        WeightsError: two tensors get the same name.
    """
    rewrites = list(rewrites)
    renamed: dict[str, LazyTensor | np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in rewrites:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise WeightsError(f"tensors {origin[new]!r} and {name!r} are both a spelling of {new!r}")
        renamed[new], origin[new] = tensor, name
    return renamed


def import_params(
    table: Sequence[Row],
    tensors: Tensors,
    shapes: Mapping[str, Any],
    put: Callable[[str, np.ndarray], Any] | None = None,
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Their tensors -> our params, leaf by leaf; at most one leaf and one tensor are held on the way.

    Args:
        table: the rows of the family.
        tensors: name -> tensor, as a reader gives them.
        shapes: nested dicts of what every leaf must be (anything with `shape` and `dtype`); values are cast
            to that dtype.
        put: (path, finished leaf) -> what stands in the result, such as the array placed on a mesh.
        ignore: patterns of names that may be left over (buffers that are computed, a tied head).

    Raises:
        WeightsError: lists every tensor that is missing, left over or misshapen, and every leaf of ours
            that no row names.
    """
    wanted = flatten(shapes)
    _check(table, tensors, wanted, ignore)
    params: dict[str, Any] = {}
    for row in table:
        spec = wanted[row.ours]
        stacked = _stacked_axes(row.theirs)
        one = tuple(spec.shape[stacked:])
        if stacked:
            leaf = np.empty(spec.shape, spec.dtype)
            for index, name in _names(row, spec.shape):
                leaf[index] = row.transform.to_ours(np.asarray(tensors[name]), one)
        else:
            leaf = row.transform.to_ours(np.asarray(tensors[row.theirs]), one).astype(spec.dtype, copy=False)
        params[row.ours] = leaf if put is None else put(row.ours, leaf)
    return unflatten({path: params[path] for path in wanted})


def export_params(table: Sequence[Row], params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Our params -> their (name, array) pairs, tensor by tensor in the order of the table.

    Raises:
        WeightsError: a leaf that no row names, or a row whose leaf is not there; every one is listed.
    """
    leaves = flatten(params)
    rows = {row.ours for row in table}
    problems = [f"no row for our leaf {path!r}" for path in leaves if path not in rows]
    problems += [f"no leaf {row.ours!r} for {row.theirs!r}" for row in table if row.ours not in leaves]
    if problems:
        raise WeightsError("the params do not fit the table:\n  " + "\n  ".join(problems))
    # Two stacks of ours may be layers of one of theirs: then only the layers tell their rows apart.
    by_name: dict[tuple[str, tuple[int, ...] | None], list[Row]] = {}
    for row in table:
        by_name.setdefault((row.theirs, row.layers), []).append(row)
    for rows_of_name in by_name.values():
        parts = [(row.transform, np.asarray(leaves[row.ours])) for row in rows_of_name]
        for index, name in _names(rows_of_name[0], parts[0][1].shape):
            pieces = [transform.to_theirs(part[index]) for transform, part in parts]
            yield name, pieces[0] if len(pieces) == 1 else _join(rows_of_name, pieces)


def _join(rows: Sequence[Row], pieces: Sequence[np.ndarray]) -> np.ndarray:
    order = sorted(range(len(rows)), key=lambda at: rows[at].transform.index)
    return rows[0].transform.join([pieces[at] for at in order])


def _stacked_axes(theirs: str) -> int:
    return ("{i}" in theirs) + ("{j}" in theirs)


def _names(row: Row, shape: Shape) -> Iterator[tuple[tuple[int, ...], str]]:
    """Index into our leaf and their name, for each tensor of a row."""
    for index in itertools.product(*(range(size) for size in shape[: _stacked_axes(row.theirs)])):
        name = row.theirs
        numbers = index if row.layers is None else (row.layers[index[0]], *index[1:])
        for letter, number in zip("ij", numbers, strict=False):
            name = name.replace("{" + letter + "}", str(number))
        yield index, name


def _check(table: Sequence[Row], tensors: Tensors, wanted: Mapping[str, Any], ignore: Sequence[str]) -> None:
    missing: dict[str, str] = {}
    misshapen: dict[str, str] = {}
    used: set[str] = set()
    no_leaf = [row.ours for row in table if row.ours not in wanted]
    for row in table:
        if row.ours not in wanted:
            continue
        shape = tuple(wanted[row.ours].shape)
        expected = row.transform.theirs_shape(shape[_stacked_axes(row.theirs) :])
        for _, name in _names(row, shape):
            used.add(name)
            if name not in tensors:
                missing[name] = f"{name} {expected}, for our {row.ours}"
            elif tuple(tensors[name].shape) != expected:
                shape_there = tuple(tensors[name].shape)
                misshapen[name] = f"{name} is {shape_there}, should be {expected} for our {row.ours}"
    covered = {row.ours for row in table}
    no_row = [path for path in wanted if path not in covered]
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in ignore) or r"(?!)")
    left_over = [name for name in tensors if name not in used and not ignored.fullmatch(name)]
    sections = {
        "missing": list(missing.values()),
        "left over": [f"{name} {tuple(tensors[name].shape)}" for name in left_over],
        "misshapen": list(misshapen.values()),
        "leaves of ours without a row": no_row,
        "rows without a leaf of ours": no_leaf,
    }
    found = [f"{len(lines)} {title}:\n  " + "\n  ".join(lines) for title, lines in sections.items() if lines]
    if found:
        raise WeightsError("the tensors do not fit this model.\n" + "\n".join(found))


def in_memory(path: str, leaf: np.ndarray) -> np.ndarray:
    """A `put` of `import_params`: a copy in memory, for files that are read by mapping them."""
    return np.array(leaf, order="C")
