"""What makes a directory finished and whole: its description, and a manifest with the SHA-256 of every file.

    mmjax.json      {"format": 1, "metadata": what the caller gave, "leaves": {path: "float32[8, 64]"}}
    manifest.json   size and SHA-256 of every file; written last, so that what has none is not finished
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from mmjax.distributed.processes import agreed

METADATA = "mmjax.json"
MANIFEST = "manifest.json"
FORMAT = 1


class CheckpointError(ValueError):
    """A directory that is damaged, unfinished, or does not hold what is asked of it; the message names it."""


def read_description(directory: epath.Path) -> dict[str, Any]:
    """The parsed mmjax.json; CheckpointError if it cannot be read or is of another format."""
    try:
        description = json.loads((directory / METADATA).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / METADATA} cannot be read: {error}") from error
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory / METADATA} has format {description.get('format')!r}, this mmjax reads {FORMAT}"
        )
    return description


def finish(directory: epath.Path, text: str) -> None:
    """Writes the metadata, then the manifest, whose presence makes the directory count."""
    (directory / METADATA).write_text(text)
    files = {
        str(path.relative_to(directory)): {"size": path.stat().length, "sha256": _sha256(path)}
        for path in sorted(_files(directory))
    }
    unready = directory / f"{MANIFEST}.partial"
    unready.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    unready.rename(directory / MANIFEST)


def check(directory: epath.Path, verify: bool) -> None:
    """CheckpointError unless the directory is finished and whole; with several processes each reads its share.

    verify: compare SHA-256 too, not only the presence and size of each file.
    """
    with agreed():
        if not directory.exists():
            previous = directory.parent / f"{directory.name}.previous"
            hint = f"; an interrupted overwrite left {previous}" if previous.exists() else ""
            raise CheckpointError(f"{directory} does not exist{hint}")
        if not (directory / MANIFEST).exists():
            raise CheckpointError(f"{directory} has no {MANIFEST}: it is no mmjax directory or is unfinished")
        found = problems(directory, verify, jax.process_index(), jax.process_count())
        if found:
            raise CheckpointError(f"{directory} is damaged: {'; '.join(found)}")


def problems(directory: epath.Path, verify: bool, share: int = 0, shares: int = 1) -> list[str]:
    """What differs from the manifest, in every `shares`-th file from `share` on."""
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        rows = [(name, int(entry["size"]), str(entry["sha256"])) for name, entry in sorted(files.items())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read ({error})"]
    found = []
    for name, size, digest in rows[share::shares]:
        path = directory / name
        if not path.exists():
            found.append(f"{name} is missing")
        elif path.stat().length != size:
            found.append(f"{name} has {path.stat().length} bytes, not {size}")
        elif verify and _sha256(path) != digest:
            found.append(f"{name} has changed (SHA-256)")
    return found


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(directory: epath.Path) -> None:
    """Removes a directory, its manifest first: what an interrupted removal leaves counts as unfinished."""
    if directory.exists():
        (directory / MANIFEST).unlink(missing_ok=True)
        directory.rmtree()
