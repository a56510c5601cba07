"""Clouds to arrays of a fixed shape: scale, choice of points, padding, errors."""

import numpy as np
import pytest

from mmjax.data.point_files import Cloud, PointError
from mmjax.data.points import PointProcessor, farthest_subset, open_points, to_unit_sphere


def cloud(number=20, seed=0):
    rng = np.random.default_rng(seed)
    return Cloud(rng.normal(3, 2, (number, 3)).astype(np.float32), rng.random((number, 3)).astype(np.float32))


def test_unit_sphere():
    xyz = cloud().xyz
    out = to_unit_sphere(xyz)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1).max(), 1, rtol=1e-6)
    # Shape is kept: distances have one common factor.
    ratio = np.linalg.norm(out[1:] - out[0], axis=1) / np.linalg.norm(xyz[1:] - xyz[0], axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    np.testing.assert_array_equal(to_unit_sphere(np.ones((4, 3), np.float32)), 0)


def test_farthest_subset():
    xyz = cloud(15).xyz
    chosen = list(farthest_subset(xyz, 6, 3))
    assert chosen[0] == 3
    for at in range(1, 6):
        away = [min(np.linalg.norm(point - xyz[other]) for other in chosen[:at]) for point in xyz]
        assert chosen[at] == int(np.argmax(away))


@pytest.mark.parametrize("sampling", ["random", "farthest", "first"])
def test_larger_clouds(sampling):
    processor = PointProcessor(7, ("rgb",), sampling=sampling, normalise=False)
    given = cloud()
    out = processor(given)
    assert out.shape == processor.item_shape == (7, 6) and out.dtype == np.float32
    rows = [tuple(row) for row in np.hstack([given.xyz, given.rgb])]
    places = [rows.index(tuple(row)) for row in out]
    assert len(set(places)) == 7, "colours stay with their points, and no point comes twice"
    np.testing.assert_array_equal(out, processor(given))
    drawn = [processor(given, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any() == (sampling != "first")


def test_smaller_clouds():
    given = cloud(5)
    out = PointProcessor(12, normalise=False)(given)
    np.testing.assert_array_equal(out, given.xyz[np.arange(12) % 5])
    out = PointProcessor(12, normalise=False, padding="mark")(given)
    np.testing.assert_array_equal(out[:5], given.xyz)
    assert np.isnan(out[5:]).all()


def test_features_that_are_not_there(tmp_path):
    np.savetxt(tmp_path / "a.xyz", cloud().xyz)
    processor = PointProcessor(4, ("normals",), fill=0.5)
    np.testing.assert_array_equal(processor(tmp_path / "a.xyz")[:, 3:], 0.5)
    with pytest.raises(PointError, match="sample 3: .*a.xyz: has no normals"):
        PointProcessor(4, ("normals",))(tmp_path / "a.xyz", "sample 3")


def test_sources(tmp_path):
    xyz = cloud().xyz
    np.save(tmp_path / "a.NPY.npy", xyz)
    for source in (xyz, xyz.tolist(), tmp_path / "a.NPY.npy", f"file://{tmp_path}/a.NPY.npy", Cloud(xyz)):
        np.testing.assert_array_equal(open_points(source).xyz, xyz)


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="sample 3: .*none.ply: no such file of points"):
        open_points(tmp_path / "none.ply", "sample 3")
    with pytest.raises(PointError, match="sample 3: array: 20 points, over the limit of 10"):
        open_points(cloud().xyz, "sample 3", max_points=10)
    with pytest.raises(PointError, match="expected a path, array or Cloud, got int"):
        open_points(3)
    with pytest.raises(PointError, match="sampling is 'rand'; wanted one of random, farthest, first"):
        PointProcessor(4, sampling="rand")
    with pytest.raises(PointError, match="features are .*wanted some of rgb, normals"):
        PointProcessor(4, ("xyz",))
    with pytest.raises(PointError, match="num_points must be at least 1, got 0"):
        PointProcessor(0)
