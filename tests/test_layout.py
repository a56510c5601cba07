"""The project as a package: metadata against imports, versions in step, files where the design puts them."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    name for name in ("mmjax", "configs", "pallas_kernels") if (ROOT / name / "__init__.py").is_file()
]
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "google": "protobuf",
    "array_record": "array-record",
    "ml_collections": "ml-collections",
    "tensorflow_datasets": "tensorflow-datasets",
    "absl": "absl-py",
}


@pytest.fixture(scope="module")
def metadata():
    """The arguments that setup.py gives to setuptools.setup."""
    seen = {}
    original, setuptools.setup = setuptools.setup, lambda **arguments: seen.update(arguments)
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = original
        os.chdir(here)
    return seen


def normal(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9_.-]+", name).group()).lower()


def sources():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path):
    """Top-level names that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_every_import_is_declared(metadata):
    core = {normal(requirement) for requirement in metadata["install_requires"]}
    extras = {
        normal(r)
        for name, rs in metadata["extras_require"].items()
        if name not in ("test", "dev")
        for r in rs
    }
    undeclared = {}
    for path in sources():
        for name in imports(path):
            if name in sys.stdlib_module_names or name in PACKAGES:
                continue
            if normal(DISTRIBUTIONS.get(name, name)) not in core | extras | {"jaxlib"}:
                undeclared.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert not undeclared


def test_every_core_requirement_is_imported(metadata):
    used = {normal(DISTRIBUTIONS.get(name, name)) for path in sources() for name in imports(path)}
    unused = {normal(requirement) for requirement in metadata["install_requires"]} - used
    assert not unused


def test_every_python_has_one_range_of_jax_and_flax(metadata):
    for name in ("jax", "flax"):
        lines = [line for line in metadata["install_requires"] if normal(line) == name]
        markers = sorted(line.split(";")[1].strip() for line in lines)
        assert markers == ['python_version < "3.12"', 'python_version >= "3.12"']
    assert metadata["python_requires"] == ">=3.11,<3.14"


def test_extras_are_the_documented_ones(metadata):
    assert set(metadata["extras_require"]) == {
        "tpu", "cuda", "tfds", "audio", "video", "3d", "eval", "serve", "tf", "onnx", "test", "dev",
    }  # fmt: skip
    torch = next(r for r in metadata["extras_require"]["test"] if r.startswith("torch=="))
    assert f"TORCH := {torch}\n" in (ROOT / "Makefile").read_text(), "setup.py and Makefile differ"


def test_packages_hold_every_source(metadata):
    packages = set(metadata["packages"])
    for path in sources():
        package = ".".join(path.parent.relative_to(ROOT).parts)
        assert package in packages, f"{package} has no __init__.py, so a wheel would leave {path.name} out"
    assert not any(name.startswith(("tests", "tools")) for name in packages)
    assert metadata["entry_points"]["console_scripts"] == ["mmjax=mmjax.cli:main"]


def test_package_data_exists(metadata):
    for package, patterns in metadata["package_data"].items():
        folder = ROOT.joinpath(*package.split("."))
        for pattern in patterns:
            assert [path for path in folder.glob(pattern) if path.is_file()], (
                f"{package}: nothing matches {pattern}"
            )
        held = {path for pattern in patterns for path in folder.glob(pattern)}
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path in held, f"{path.relative_to(ROOT)} would be missing from a wheel"


def test_changelog_and_licence_are_in_step(metadata):
    assert f"## {metadata['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text() and metadata["license"] == "Apache-2.0"


def test_pyproject_holds_settings_only():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "project" not in settings
    assert set(settings["tool"]["importlinter"]["root_packages"]) == set(PACKAGES)
    layers = " ".join(settings["tool"]["importlinter"]["contracts"][0]["layers"])
    named = set(re.findall(r"[A-Za-z_.]+", layers))
    for path in (ROOT / "mmjax").iterdir():
        if (
            path.name != "__pycache__"
            and path.name != "__init__.py"
            and (path.is_dir() or path.suffix == ".py")
        ):
            assert f"mmjax.{path.stem}" in named, f"mmjax.{path.stem} stands on no floor of pyproject.toml"


def test_the_checks_run_what_they_say():
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    text = run.read_text()
    assert "set -euo pipefail" in text
    for word in ("make lint", "make test", "--short"):
        assert word in text


def test_tests_have_unique_names():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest cannot import two test files of one name"
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    "answer, words",
    [
        (
            '-c) case "$2" in *version_info*) exit 1;; esac;; --version) echo Python 3.9.1;;',
            "3.13.*Python 3.9.1",
        ),
        (
            '-c) case "$2" in *ensurepip*) exit 1;; esac;;',
            "venv or ensurepip module is missing.*python3-venv",
        ),
    ],
)
def test_make_says_what_is_wrong_with_a_python(tmp_path, answer, words):
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "setup.py", tmp_path)
    python = tmp_path / "fake-python"
    python.write_text(f'#!/bin/sh\ncase "$1" in {answer} esac\n')
    python.chmod(0o755)
    command = ["make", "-C", str(tmp_path), f"PYTHON={python}", ".venv/.core-stamp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(words, done.stderr, re.S), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".venv" / ".made-stamp").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_the_targets():
    text = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "test-all", "lint", "bench", "clean"):
        assert re.search(rf"^  make {target} ", text, re.M)
