"""Reading chosen frames of a video safely.

Animations (GIF, WebP, APNG) are read by Pillow, folders of images file by file, arrays and lists as they are;
everything else (mp4, mkv, webm, ...) through the optional package PyAV.
"""

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.image import MAX_PIXELS, ImageError

ANIMATIONS = ("GIF", "WEBP", "PNG")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")

# (frames, frames a second or None) -> indices of the frames that are wanted, in any order, repeated or not.
Choose = Callable[[int, float | None], np.ndarray]


class VideoError(ValueError):
    """A video that cannot or should not be decoded, or a recipe that is not understood."""


def read_frames(source: Any, choose: Choose, name: str = "", max_pixels: int = MAX_PIXELS) -> list[Any]:
    """The chosen frames of a video, each something that `open_image` takes.

    Args:
        source: a path, `file://` URL or bytes of a video or animation; a folder of images, in the order of the
            numbers in their names; an array [frames, H, W, 1 | 3 | 4] or [frames, H, W]; a list of whatever
            `open_image` takes.
        choose: which frames, see `FrameSampling`.
        name: what the error messages call the video, for instance the sample it belongs to.
        max_pixels: larger frames are refused before any is decoded.

    Raises:
        FileNotFoundError: naming the path.
        VideoError: no frame, too short, truncated, corrupt, too large, no known kind of video; or PyAV is needed.
    """
    if isinstance(source, np.ndarray):
        label = label_of(name, f"array {source.dtype} {list(source.shape)}")
        if source.ndim not in (3, 4):
            raise VideoError(f"{label}: expected [frames, H, W] or [frames, H, W, channels]")
        return [source[index] for index in _chosen(choose, len(source), None, label)]
    if isinstance(source, (list, tuple)):
        label = label_of(name, "list of frames")
        return [source[index] for index in _chosen(choose, len(source), None, label)]
    if isinstance(source, (bytes, bytearray, memoryview)):
        label, data = label_of(name, "bytes"), bytes(source)
        if not data:
            raise VideoError(f"{label}: an empty file")
        return _read(lambda: io.BytesIO(data), data[:12], choose, label, max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise VideoError(f"{label_of(name, 'video')}: expected a path, bytes, array or list of frames, got {kind}")
    path, label = os.fspath(source), label_of(name, os.fspath(source))
    if re.match(r"https?://", path):
        raise VideoError(f"{label}: videos are not downloaded; fetch it first and give a path")
    path = Path(path.removeprefix("file://"))
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix.lower() in SUFFIXES), key=_by_number)
        return [files[index] for index in _chosen(choose, len(files), None, f"{label} (a folder of images)")]
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{label}: no such video file") from error
    except (OSError, ValueError) as error:
        raise VideoError(f"{label}: cannot be read ({error})") from error
    if not start:
        raise VideoError(f"{label}: an empty file")
    return _read(lambda: path.open("rb"), start, choose, label, max_pixels)


def label_of(name: str, what: str) -> str:
    """What error messages call a source: the name of the sample, and what it is."""
    what = what if len(what) <= 200 else what[:200] + "..."
    return f"{name}: {what}" if name and name != what else what


def _by_number(file: Path) -> list[tuple[int, str]]:
    """Key by which frame_2 stands before frame_10."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _chosen(choose: Choose, count: int, fps: float | None, label: str) -> list[int]:
    if not count:
        raise VideoError(f"{label}: there is no frame")
    try:
        return [int(index) for index in choose(count, fps)]
    except ValueError as error:
        raise VideoError(f"{label}: {error}") from error


def _check_size(width: int, height: int, label: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise VideoError(f"{label}: frames of {width}x{height} pixels, over the limit of {max_pixels}")


def _read(
    opened: Callable[[], io.IOBase], start: bytes, choose: Choose, label: str, max_pixels: int
) -> Sequence[Any]:
    """Frames of a file by what it begins with; `opened` opens it anew each time."""
    animated = start[:4] in (b"GIF8", b"\x89PNG") or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
    try:
        with opened() as file:
            return (_animation if animated else _film)(file, choose, label, max_pixels)
    except (VideoError, ImageError, MemoryError):
        raise
    except Exception as error:
        raise VideoError(f"{label}: truncated, corrupt or not a video in a known format ({error})") from error


def _animation(file: io.IOBase, choose: Choose, label: str, max_pixels: int) -> list[Image.Image]:
    with Image.open(file, formats=ANIMATIONS) as image:
        _check_size(*image.size, label, max_pixels)
        count, durations = getattr(image, "n_frames", 1), []
        for index in range(count):
            image.seek(index)
            # Half a frame at the end of a cut file counts as a frame until it is decoded.
            image.load()
            durations.append(image.info.get("duration", 0))
        seconds = sum(durations) / 1000
        chosen = _chosen(choose, count, count / seconds if seconds else None, label)
        frames = {}
        for index in sorted(set(chosen)):
            image.seek(index)
            frames[index] = image.copy()
    return [frames[index] for index in chosen]


def _film(file: io.IOBase, choose: Choose, label: str, max_pixels: int) -> list[np.ndarray]:
    try:
        import av
    except ImportError as error:
        raise VideoError(
            f"{label}: neither GIF, WebP nor PNG; other videos need the package av: pip install 'mmjax[video]'"
        ) from error
    with av.open(file) as container:
        if not container.streams.video:
            raise VideoError(f"{label}: there is no picture in it, only other streams")
        stream = container.streams.video[0]
        _check_size(stream.width, stream.height, label, max_pixels)
        # Packets are counted, since what a header says of its frames is often nothing or wrong.
        count = sum(1 for packet in container.demux(stream) if packet.size)
        fps = float(stream.average_rate) if stream.average_rate else None
    chosen = _chosen(choose, count, fps, label)
    wanted, frames, found = set(chosen), {}, 0
    file.seek(0)
    with av.open(file) as container:
        for found, frame in enumerate(container.decode(container.streams.video[0]), start=1):
            if found - 1 in wanted:
                # The rotation is in degrees against the clock, as numpy turns.
                frames[found - 1] = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            if len(frames) == len(wanted):
                return [frames[index] for index in chosen]
    raise VideoError(f"{label}: truncated or corrupt: {found} of {count} frames can be decoded")
