"""From what a user calls a model to files on this machine."""

import os
from pathlib import Path


def locate(path: str | os.PathLike) -> Path:
    """The local directory or `.gguf` file that a name stands for.

    A path that exists is itself. `gs://bucket/dir` is copied to a folder in the cache. Any other name of the
    form "owner/name" is looked up on the hub through huggingface_hub, where there is a network.

    Raises:
        FileNotFoundError: there is no such path and the hub has no such repository, or cannot be reached.
    """
    text = os.fspath(path)
    if text.startswith("gs://"):
        return _from_bucket(text)
    local = Path(text).expanduser()
    if local.is_dir() or (local.is_file() and local.suffix == ".gguf"):
        return local
    if local.is_file():
        raise FileNotFoundError(f"{local} is a file; a model is a directory or a .gguf file")
    if local.is_absolute() or text.count("/") != 1 or text.startswith(".") or local.parent.is_dir():
        raise FileNotFoundError(f"{text}: no such directory or .gguf file")
    return _from_hub(text)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        message = f"{name}: no such directory here, and the hub gives nothing under this name ({reason})"
        raise FileNotFoundError(message) from error


def _from_bucket(url: str) -> Path:
    from etils import epath

    source = epath.Path(url)
    if not source.exists():
        raise FileNotFoundError(f"{url}: no such directory")
    cache = Path(os.environ.get("MMJAX_CACHE") or Path.home() / ".cache" / "mmjax")
    target = cache / "buckets" / url.removeprefix("gs://").strip("/")
    _mirror(source, target)
    return target


def _mirror(source, target: Path) -> None:
    """Copies a remote folder; a file that is there in full size already is kept."""
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        copy = target / item.name
        if item.is_dir():
            _mirror(item, copy)
        elif not copy.exists() or copy.stat().st_size != item.stat().length:
            partial = copy.with_name(copy.name + ".partial")
            item.copy(partial, overwrite=True)
            partial.rename(copy)
