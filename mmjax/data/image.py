"""Images: opening them safely, and turning them into the arrays that an encoder was trained on.

`open_image` reads whatever a record may hold and refuses what would hurt (decompression bombs, half a
file) with an error that names it. `ImageProcessor` follows transformers' PIL image processors
(`CLIPImageProcessor`, `SiglipImageProcessor` and their kin) operation by operation, so that a checkpoint's
`preprocessor_config.json` gives the same pixels here.
"""

import base64
import binascii
import dataclasses
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

# Raster formats only: Pillow would hand EPS to Ghostscript, and the rare plugins are rarely fuzzed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
MAX_PIXELS = 64_000_000
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


class ImageError(ValueError):
    """An image that cannot or should not be decoded, or an image recipe that is not understood."""


def open_image(
    source: Any, name: str = "", max_pixels: int = MAX_PIXELS, alpha: Literal["white", "drop"] = "white"
) -> Image.Image:
    """Opens one image as 8-bit RGB, turned upright by its EXIF orientation; of an animation, the first frame.

    Args:
        source: a path, `file://` URL, `data:` URL, bytes, PIL image, or array: uint8 [H, W] or
            [H, W, 1 | 3 | 4], or floats in 0..1 of these shapes.
        name: what the error messages call the image, for instance the sample it belongs to.
        max_pixels: larger images are refused by their header, before any pixel is decoded.
        alpha: "white" lays transparent images on white, as transformers does since version 5; "drop" keeps
            the colours under transparent pixels, as older versions and the original LLaVA code do.

    Greyscale of 16 bits is scaled to 8 (Pillow and transformers saturate it).

    Raises:
        FileNotFoundError: naming the path.
        ImageError: too large, truncated, corrupt, not an image, or without a stated value range.
    """
    if isinstance(source, Image.Image):
        label = _label(name, "image")
        return _decode(source, label, max_pixels, alpha)
    if isinstance(source, np.ndarray):
        label = _label(name, f"array {source.dtype} {list(source.shape)}")
        return _decode(_from_array(source, label), label, max_pixels, alpha)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, what = bytes(source), "bytes"
    elif isinstance(source, str) and source[:5].lower() == "data:":
        data, what = _from_data_url(source, name), "data URL"
    elif isinstance(source, (str, os.PathLike)):
        data, what = _read(source, name), os.fspath(source)
    else:
        raise ImageError(
            f"{_label(name, 'image')}: expected a path, data URL, bytes, PIL image or array, "
            f"got {type(source).__name__}"
        )
    label = _label(name, what)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{label}: {error}; at most {max_pixels} pixels are decoded") from error
    except MemoryError:
        raise
    except Exception as error:
        kind = f"{len(data)} bytes that start with {data[:8]!r}" if data else "an empty file"
        raise ImageError(f"{label}: not an image in a known format ({kind})") from error
    with image:
        return _decode(image, label, max_pixels, alpha)


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """The recipe from an image to encoder input; the defaults are CLIP's.

    Steps in order, each with its switch: square padding, resize, centre crop, rescale, normalise. Fields
    carry the names and meanings of `preprocessor_config.json`, besides:

        pad_to_square: first pad with the mean colour to a square ("expand2square" of LLaVA-1.5, arXiv
            2310.03744; `do_pad` of transformers' LlavaImageProcessor).
        min_size: above 0 the longer side becomes that of `size`, the shorter no less than this, and only then the
            image is padded (Janus); 0: as above.
        alpha, max_pixels: see `open_image`.

    `size` is {"shortest_edge": s}, {"shortest_edge": s, "longest_edge": l} or {"height": h, "width": w}.
    """

    do_resize: bool = True
    size: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"shortest_edge": 224})
    resample: int = 3
    do_center_crop: bool = True
    crop_size: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"height": 224, "width": 224})
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = OPENAI_MEAN
    image_std: tuple[float, ...] = OPENAI_STD
    do_convert_rgb: bool = True
    pad_to_square: bool = False
    min_size: int = 0
    alpha: str = "white"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.do_resize and set(self.size) not in (
            {"shortest_edge"},
            {"shortest_edge", "longest_edge"},
            {"height", "width"},
        ):
            raise ImageError(
                f"size has the keys {sorted(self.size)}; "
                "wanted shortest_edge (and longest_edge) or height and width"
            )
        if self.do_center_crop and set(self.crop_size) != {"height", "width"}:
            raise ImageError(f"crop_size has the keys {sorted(self.crop_size)}; wanted height and width")
        if self.alpha not in ("white", "drop"):
            raise ImageError(f'alpha is {self.alpha!r}; wanted "white" or "drop"')
        if len(self.image_mean) != 3 or len(self.image_std) != 3:
            raise ImageError(
                f"image_mean {self.image_mean}, image_std {self.image_std}: 3 values each are needed"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ImageProcessor":
        """Reads `preprocessor_config.json`, or the `image_processor` inside `processor_config.json`.

        Old spellings are understood: `feature_extractor_type`, a bare number for `size` or `crop_size`, a
        pair [height, width], a single number for mean or std.

        Raises:
            ImageError: an image processor whose steps are not the ones of this class.
        """
        config = config.get("image_processor", config)
        type_name = config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIP"
        family = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", type_name)
        if family not in _FAMILIES:
            raise ImageError(f"image processor {type_name!r} is not among the known: {', '.join(_FAMILIES)}")
        values = {**_FAMILIES[family], **{key: value for key, value in config.items() if value is not None}}
        if values.get("do_pan_and_scan"):
            raise ImageError(f"image processor {type_name!r} with do_pan_and_scan is not known here")
        if values.get("do_pad") and family not in ("Llava", "Janus"):
            raise ImageError(f"image processor {type_name!r} with do_pad is not known here")
        square = values.pop("default_to_square")
        values["size"] = _size_dict(values["size"], square)
        values["crop_size"] = _size_dict(values["crop_size"], True)
        values["pad_to_square"] = bool(values.get("do_pad"))
        for key in ("image_mean", "image_std"):
            value = values[key]
            values[key] = (float(value),) * 3 if isinstance(value, (int, float)) else tuple(map(float, value))
        values.update(config.get("mmjax") or {})
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in names})

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers and `from_hf` read back to the same recipe."""
        own = {
            key: getattr(self, key)
            for key, default in (("alpha", "white"), ("max_pixels", MAX_PIXELS))
            if getattr(self, key) != default
        }
        config = dataclasses.asdict(self)
        for key in ("pad_to_square", "alpha", "max_pixels", *(() if self.min_size else ("min_size",))):
            del config[key]
        for key in ("size", "crop_size"):
            config[key] = dict(config[key])
        for key in ("image_mean", "image_std"):
            config[key] = list(config[key])
        family = "Llava" if self.pad_to_square else "CLIP" if self.do_center_crop else "Siglip"
        if family == "Siglip":
            del config["do_center_crop"], config["crop_size"]
        if self.min_size:
            family, config["do_pad"] = "Janus", self.pad_to_square
        elif self.pad_to_square:
            config["do_pad"] = True
        if own:
            config["mmjax"] = own
        return {"image_processor_type": f"{family}ImageProcessor", **config}

    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every output, or None where it depends on the image."""
        if self.do_center_crop:
            return self.crop_size["height"], self.crop_size["width"]
        if self.do_resize and "height" in self.size and (self.pad_to_square or not self.min_size):
            return self.size["height"], self.size["width"]
        if self.do_resize and self.pad_to_square:
            return self.size["shortest_edge"], self.size["shortest_edge"]
        return None

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """Shape of every output, or None where it depends on the image."""
        size = self.output_size()
        return None if size is None else (*size, 3)

    @staticmethod
    def size_of(image: Image.Image) -> tuple[None, tuple[int, int]]:
        """No grid, and (height, width) in pixels, of what `open` gave."""
        return None, (image.height, image.width)

    def open(self, source: Any, name: str = "") -> Image.Image:
        """`open_image` with this recipe's options."""
        return open_image(source, name, self.max_pixels, self.alpha)

    def __call__(self, image: Any, name: str = "") -> np.ndarray:
        """Opens (see `open_image`) and processes one image; returns float32 [H, W, 3]."""
        image = self.open(image, name)
        colour = tuple(int(255 * mean) for mean in self.image_mean)
        if self.pad_to_square and not self.min_size:
            image = _pad_to_square(image, colour)
        if self.do_resize:
            height, width = resized_size(image.height, image.width, self.size)
            if self.min_size:
                scale = self.size["height"] / max(image.size)
                height, width = (max(round(side * scale), self.min_size) for side in (image.height, image.width))
            if height * width > self.max_pixels:
                raise ImageError(
                    f"{_label(name, 'image')}: {image.width}x{image.height} would be resized to "
                    f"{width}x{height}, more than the limit of {self.max_pixels} pixels"
                )
            image = image.resize((width, height), resample=self.resample)
        if self.pad_to_square and self.min_size:
            image = _pad_to_square(image, colour)
        pixels = np.asarray(image)
        if self.do_center_crop:
            pixels = _center_crop(pixels, self.crop_size["height"], self.crop_size["width"])
        if self.do_rescale:
            pixels = pixels.astype(np.float64) * self.rescale_factor
        pixels = pixels.astype(np.float32)
        if self.do_normalize:
            pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return pixels


_SQUARE_224 = {"height": 224, "width": 224}
_CLIP = {"default_to_square": False, "size": {"shortest_edge": 224}, "crop_size": _SQUARE_224, "resample": 3}
_CLIP |= {"do_center_crop": True, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}
_PLAIN = {**_CLIP, "size": _SQUARE_224, "do_center_crop": False, "image_mean": HALF, "image_std": HALF}
# What each family of transformers' processors assumes for keys that its config leaves out.
_FAMILIES = {
    "CLIP": _CLIP,
    "Llava": _CLIP,
    "Siglip": _PLAIN,
    "Gemma3": {**_PLAIN, "resample": 2},
    "Idefics": {**_PLAIN, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD},
    "Janus": {
        **_PLAIN, "size": {"height": 384, "width": 384}, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD,
        "min_size": 14, "do_pad": True,
    },
    "ViT": {**_PLAIN, "default_to_square": True, "resample": 2},
    "Blip": {
        **_CLIP,
        "default_to_square": True,
        "size": {"height": 384, "width": 384},
        "do_center_crop": False,
    },
}


def _label(name: str, what: str) -> str:
    what = what if len(what) <= 200 else what[:200] + "..."
    return f"{name}: {what}" if name and name != what else what


def _read(source: str | os.PathLike, name: str) -> bytes:
    path = os.fspath(source)
    if re.match(r"https?://", path):
        raise ImageError(f"{_label(name, path)}: images are not downloaded; fetch it first and give a path")
    if path.startswith("file://"):
        path = path[len("file://") :]
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_label(name, path)}: no such image file") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{_label(name, path)}: cannot be read ({error})") from error


def _from_data_url(url: str, name: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageError(f"{_label(name, header[:60])}: expected data:image/...;base64,...")
    try:
        return base64.b64decode(re.sub(r"\s", "", body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{_label(name, header[:60])}: bad base64 ({error})") from error


def _from_array(array: np.ndarray, label: str) -> Image.Image:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(f"{label}: expected [H, W] or [H, W, 1 | 3 | 4], channels last")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (0 <= low and high <= 1):
            raise ImageError(f"{label}: floats must lie in 0..1, found {low:.4g}..{high:.4g}")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"{label}: expected uint8, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))


def _decode(image: Image.Image, label: str, max_pixels: int, alpha: str) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{label}: {width}x{height} is {width * height} pixels, over the limit of {max_pixels}"
        )
    try:
        image.load()
        file_format = image.format
        return _to_rgb(ImageOps.exif_transpose(image), file_format, label, alpha)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"{label}: truncated or corrupt image ({error})") from error


def _to_rgb(image: Image.Image, file_format: str | None, label: str, alpha: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"{label}: mode {image.mode} has no stated range of values; convert it to 8 bits")
    transparent = "A" in image.getbands() or image.info.get("transparency") is not None
    if transparent:
        image = image.convert("RGBA")
        if alpha == "white":
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _size_dict(size: Any, square: bool) -> dict[str, int]:
    if isinstance(size, Mapping):
        return {key: int(value) for key, value in size.items() if value is not None}
    if isinstance(size, (list, tuple)):
        return {"height": int(size[0]), "width": int(size[1])}
    return {"height": int(size), "width": int(size)} if square else {"shortest_edge": int(size)}


def resized_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """(height, width) after the resize; lengths are truncated towards zero as transformers does."""
    if "height" in size:
        return size["height"], size["width"]
    short, long = min(height, width), max(height, width)
    edge = new_short = size["shortest_edge"]
    limit = size.get("longest_edge")
    exact = float(edge)
    if limit is not None and long / short * edge > limit:
        exact = limit * short / long
        new_short = int(round(exact))
    new_long = long if limit is not None and new_short == short else int(exact * long / short)
    return (new_short, new_long) if height <= width else (new_long, new_short)


def _pad_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts [H, W, 3] to the centre; where the image is smaller than the cut, black is added around it."""
    missing = [max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])]
    if any(missing):
        before = [(count + 1) // 2 for count in missing]
        pads = [(first, count - first) for first, count in zip(before, missing, strict=True)]
        pixels = np.pad(pixels, (*pads, (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
