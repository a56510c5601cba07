"""The demo's pictures: 1,384 emoji, 129 of them recoloured in 8 colours by code, and what of it is held out.

The files come from `tools/build_emoji.py`. Never shown in any stage are (1) for each recoloured object two
colours, one to develop on and one for the final score, and (2) a tenth of the nouns.
"""

import dataclasses
import functools
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "assets"


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of the data set, described in words; `pixels` draws it.

    Attributes:
        concept: the emoji's id (its code points).
        noun: its English label.
        group: one of eight words, such as "animals".
        color: the colour it was painted in, or None for the emoji as it is.
        split: "train", "noun" (a noun never shown), "develop" or "final" (a colour and an object that are
            never shown together).
    """

    concept: str
    noun: str
    group: str
    color: str | None
    split: str

    @property
    def label(self) -> str:
        """What the picture shows: "frog", or "blue frog"."""
        return f"{self.color} {self.noun}" if self.color else self.noun

    @property
    def name(self) -> str:
        """A file-like name that is unique in the data set: "1f438-blue"."""
        return f"{self.concept}-{self.color}" if self.color else self.concept


@dataclasses.dataclass(frozen=True)
class Assets:
    """The data set.

    Attributes:
        colors: name -> RGB, 0 to 255.
        groups: the eight words.
        pictures: every picture of every split.
        natural: id of a recoloured object -> its own colour.
    """

    colors: dict[str, tuple[int, int, int]]
    groups: tuple[str, ...]
    pictures: tuple[Picture, ...]
    natural: dict[str, str]

    def of(self, split: str) -> tuple[Picture, ...]:
        """The pictures of one split."""
        return tuple(picture for picture in self.pictures if picture.split == split)

    def pixels(self, picture: Picture) -> np.ndarray:
        """uint8 [64, 64, 3]: the emoji on white, painted in its colour if it has one."""
        image = read_emoji()[picture.concept]
        return tint(image, self.colors[picture.color]) if picture.color else on_white(image)


@functools.cache
def load_assets() -> Assets:
    """Reads `concepts.json`. The order is fixed: each emoji as it is, followed by its recolourings."""
    content = json.loads((FOLDER / "concepts.json").read_text())
    objects = {entry["id"]: entry for entry in content["objects"]}
    colors = {name: tuple(rgb) for name, rgb in content["colors"].items()}
    pictures = []
    for concept in content["concepts"]:
        words = (concept["id"], concept["label"], concept["group"])
        pictures.append(Picture(*words, None, "noun" if concept["split"] == "held_out" else "train"))
        if concept["id"] in objects:
            held = {objects[concept["id"]][split]: split for split in ("develop", "final")}
            pictures += [Picture(*words, color, held.get(color, "train")) for color in colors]
    natural = {entry["id"]: entry["natural"] for entry in content["objects"]}
    return Assets(colors, tuple(content["groups"]), tuple(pictures), natural)


@functools.cache
def read_emoji() -> dict[str, np.ndarray]:
    """The emoji by id, uint8 [64, 64, 4] (red, green, blue, alpha, not premultiplied)."""
    images = {}
    with zipfile.ZipFile(FOLDER / "emoji.zip") as archive:
        for name in archive.namelist():
            with Image.open(io.BytesIO(archive.read(name))) as image:
                images[name.removesuffix(".webp")] = np.asarray(image.convert("RGBA"))
    return images


def on_white(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] -> uint8 [H, W, 3], composed on a white ground."""
    alpha = image[..., 3:] / 255
    return np.rint(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def tint(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Paints an emoji in one colour, keeping its shading, and composes it on white.

    The luminance of the opaque part is stretched between its 5th and 95th percentiles. Shades below 0.55
    darken the colour towards a quarter of it, shades above lighten it three quarters of the way to white, so
    that outlines and highlights survive; an eighth of the original stays mixed in.

    Args:
        image: uint8 [H, W, 4].
        color: RGB, 0 to 255.

    Returns:
        uint8 [H, W, 3].
    """
    alpha = image[..., 3:].astype(np.float32) / 255
    original = on_white(image).astype(np.float32) / 255
    luminance = original @ np.array([0.3, 0.59, 0.11], np.float32)
    opaque = alpha[..., 0] > 0.5
    low, high = np.percentile(luminance[opaque], [5, 95]) if opaque.any() else (0.0, 1.0)
    shade = np.clip((luminance - low) / (high - low + 1e-3), 0, 1)[..., None]
    paint = np.array(color, np.float32) / 255
    dark = paint * (0.25 + 0.75 * shade / 0.55)
    light = paint + (1 - paint) * (shade - 0.55) / 0.45 * 0.75
    painted = 0.88 * np.where(shade < 0.55, dark, light) + 0.12 * original
    return np.rint(np.clip(255 * (painted * alpha + (1 - alpha)), 0, 255)).astype(np.uint8)
