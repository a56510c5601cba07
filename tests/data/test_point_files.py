"""Files of points in every format that is read, and in the ways they can be wrong."""

import io
import struct

import numpy as np
import pytest

from mmjax.data.point_files import PointError, read_points

XYZ = np.array([[0.5, -1.25, 2.0], [3.0, 0.0, -0.5], [1.0, 1.5, 0.25]], np.float32)
BYTES = np.array([[255, 0, 51], [0, 102, 255], [204, 0, 0]], np.uint8)
RGB = BYTES.astype(np.float32) / 255
NORMALS = np.eye(3, dtype=np.float32)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def text(*rows):
    return "\n".join(" ".join(map(str, row)) for row in rows).encode()


HEADER = """ply
format {} 1.0
comment a comment
{}element vertex 3
property float x
property float y
property double z
property uchar red
property uchar green
property uchar blue
property float nx
property float ny
property float nz
element face 1
property list uchar int vertex_indices
end_header
"""
CAMERA = "element camera 1\nproperty short a\nproperty float b\n"


def ply(encoding, before=""):
    head = HEADER.format(encoding, before).encode()
    rows = list(zip(XYZ, BYTES, NORMALS, strict=True))
    if encoding == "ascii":
        lines = [(*xyz, *rgb, *normal) for xyz, rgb, normal in rows]
        return head + text(*([(7, 0.5)] if before else []), *lines, (3, 0, 1, 2)) + b"\n"
    body = b"".join(
        struct.pack("<2fd3B3f", *map(float, xyz), *map(int, rgb), *map(float, normal)) for xyz, rgb, normal in rows
    )
    return head + (struct.pack("<hf", 7, 0.5) if before else b"") + body + struct.pack("<B3i", 3, 0, 1, 2)


OFF = b"3 1 0\n0.5 -1.25 2.0\n3 0 -0.5\n# between\n1 1.5 .25\n3 0 1 2\n"
GOOD = {
    "npy": (".npy", npy(XYZ.astype(np.float64)), None, None),
    "npy, colours": (".npy", npy(np.hstack([XYZ, RGB])), RGB, None),
    "npz, one array": (".npz", npz(whatever=XYZ), None, None),
    "npz": (".npz", npz(points=XYZ, colors=BYTES, normals=NORMALS), RGB, NORMALS),
    "ply": (".ply", ply("ascii"), RGB, NORMALS),
    "ply, binary": (".ply", ply("binary_little_endian"), RGB, NORMALS),
    "ply, element before": (".ply", ply("ascii", CAMERA), RGB, NORMALS),
    "ply, binary, element before": (".ply", ply("binary_little_endian", CAMERA), RGB, NORMALS),
    "obj": (".obj", b"# a comment\nmtllib a\n" + text(*(("v", *row) for row in XYZ)) + b"\nf 1 2 3\n", None, None),
    "obj, weight": (".obj", text(*(("v", *row, 1.0) for row in XYZ)), None, None),
    "obj, colours": (".obj", text(*(("v", *row) for row in np.hstack([XYZ, RGB]))), RGB, None),
    "off": (".off", b"OFF\n" + OFF, None, None),
    "off, one line": (".off", b"OFF " + OFF, None, None),
    "off, no blank": (".off", b"OFF" + OFF, None, None),
    "xyz": (".xyz", text(*XYZ), None, None),
    "xyz, colours to 255": (".txt", text(*np.hstack([XYZ, BYTES])), RGB, None),
    "commas, count first": (".pts", b"3\n" + text(*XYZ).replace(b" ", b","), None, None),
}


@pytest.mark.parametrize("name", GOOD)
def test_formats(name):
    suffix, data, rgb, normals = GOOD[name]
    cloud = read_points(data, suffix, name)
    for mine, expected in ((cloud.xyz, XYZ), (cloud.rgb, rgb), (cloud.normals, normals)):
        assert (mine is None) == (expected is None)
        if mine is not None:
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_columns():
    table = np.hstack([XYZ, NORMALS, RGB])
    cloud = read_points(text(*table), ".xyz", "a", ("normals", "rgb"))
    np.testing.assert_array_equal(cloud.normals, NORMALS)
    np.testing.assert_allclose(cloud.rgb, RGB, atol=1e-6)


BAD = {
    "kind": (".stl", b"", r"a: files of points end in .npy, .*, not in '.stl'"),
    "pickle": (".npy", npy(np.array([{}], object)), "a: damaged .npy file"),
    "cut npz": (".npz", npz(points=XYZ)[:-9], "a: damaged .npz file"),
    "shape": (".npy", npy(np.zeros((4, 5))), r"a: expected numbers \[N, 3 \| 6\].*got float64 \[4, 5\]"),
    "lengths": (".npz", npz(points=XYZ, rgb=RGB[:2]), r"a: rgb has shape \[2, 3\], expected \[3, 3\]"),
    "names": (".npz", npz(here=XYZ, there=XYZ), r"a: no array named xyz or points or pos among \['here', 'there'\]"),
    "not finite": (".npy", npy(XYZ * [[1], [np.nan], [np.inf]]), "a: 2 of 3 points have xyz that are not finite"),
    "none": (".npy", npy(np.zeros((0, 3))), "a: no points"),
    "empty": (".xyz", b"\n", "a: no points"),
    "ragged": (".xyz", b"1 2 3\n1 2\n", "a: its rows have 2 and 3 numbers"),
    "words": (".xyz", b"1 2 three\n", "a: damaged .xyz file"),
    "cut ply": (".ply", ply("binary_little_endian")[:-30], "a: 2 of 3 vertices are there"),
    "cut ascii ply": (".ply", ply("ascii").rsplit(b"\n", 3)[0], "a: 2 of 3 vertices are there"),
    "big endian": (".ply", ply("binary_big_endian"), "a: .ply format binary_big_endian is not supported"),
    "no ply": (".ply", b"plyy", "a: not a .ply file"),
    "list first": (".ply", HEADER.format("ascii", "element f 1\nproperty list uchar int v\n").encode(), "a: lists of"),
    "cut off": (".off", b"OFF\n3 1 0\n0 0 0\n", "a: 1 of 3 vertices are there"),
    "no off": (".off", b"COFF\n", "a: an .off file begins with OFF"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    suffix, data, message = BAD[name]
    with pytest.raises(PointError, match=message):
        read_points(data, suffix, "a")
