"""A gallery of image files: opened and embedded batch after batch; those that cannot be read are left out and named."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.image import ImageProcessor
from mmjax.data.processor import Processor
from mmjax.infer.batch import progress_on_stderr
from mmjax.infer.retrieve import Gallery, make_gallery, retrieval_ports
from mmjax.model import MultimodalLM

# Names of files that are taken for images, in whatever case.
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SHOWN = 10  # unreadable images that a warning names


def open_gallery(
    model: MultimodalLM,
    params: dict[str, Any],
    processor: Processor,
    port: str,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    batch_size: int = 64,
) -> Gallery:
    """`make_gallery` of files, with progress on stderr.

    Args:
        model, params: with retrieval at the port.
        processor: has the recipe of the port's images.
        port: of the retrieval.
        images: a directory, of which every file below it is taken that is called like an image (`ENDINGS`), in the
            order of their names; or paths.
        batch_size: images at a time, all that is in memory at once.

    Returns:
        A gallery whose names are the paths.

    Raises:
        FileNotFoundError: no such directory, or no image in it.
        ValueError: a port that retrieves nothing or has no recipe; none of the images can be read. Fewer that cannot
            are left out, and one warning counts and names them.
    """
    if port not in retrieval_ports(model):
        raise ValueError(f"port {port!r} retrieves nothing; ports that do: {list(retrieval_ports(model))}")
    recipe = getattr(processor.images.get(port), "recipe", None)
    if recipe is None:
        raise ValueError(f"the checkpoint does not say how images of port {port!r} become arrays")
    paths = image_files(images) if isinstance(images, str | os.PathLike) else [os.fspath(path) for path in images]
    names: list[str] = []
    lost: list[str] = []
    with progress_on_stderr(0, len(paths), "embed", "embedded", "images") as progress:
        items = _opened(paths, recipe, names, lost, progress)
        try:
            gallery = make_gallery(model, params, port, items, names, batch_size)
        except ValueError as error:
            if names or not lost:
                raise
            raise ValueError(f"none of {len(paths)} images can be read: {_few(lost)}") from error
    if lost:
        warnings.warn(f"{len(lost)} of {len(paths)} images cannot be read and are left out: {_few(lost)}", stacklevel=2)
    return gallery


def image_files(directory: str | os.PathLike) -> list[str]:
    """Paths of all files below a directory that are called like images, sorted.

    Raises:
        FileNotFoundError: no such directory, or no such file in it.
    """
    place = Path(directory)
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: no such directory of images")
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise FileNotFoundError(f"{place}: no image in it (files that end in {', '.join(ENDINGS)})")
    return [str(path) for path in found]


def _opened(
    paths: Sequence[str], recipe: ImageProcessor, names: list[str], lost: list[str], progress: Any
) -> Iterator[np.ndarray]:
    """Arrays of the images that can be read, whose names go to `names`; of the others what is wrong goes to `lost`."""
    for number, path in enumerate(paths):
        try:
            array = recipe(recipe.open(path))
        except (OSError, ValueError) as error:
            lost.append(str(error) if path in str(error) else f"{path}: {error}")
        else:
            names.append(path)
            yield array
        progress(number + 1, len(paths), len(lost))


def _few(lost: Sequence[str]) -> str:
    more = f"; and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    return "; ".join(lost[:SHOWN]) + more
