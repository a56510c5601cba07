"""Build the pictures and words of the demo from two npm packages.

    python tools/build_emoji.py                      # runs `npm pack` for both packages in a temporary folder
    python tools/build_emoji.py --packages FOLDER    # uses the two .tgz files that lie in FOLDER

It writes `emoji.zip`, `concepts.json`, `LICENSE.md` and `PROVENANCE.md` into `mmjax/recipes/demo/assets`.

- `emoji.zip`: one stored (uncompressed) entry `<id>.webp` per concept, a 64 px WebP with alpha at quality 80.
- `concepts.json`: the colours with their RGB, the groups, one line per concept (id, label, group, subgroup,
  split), and one line per recoloured object (its natural colour, the colour held out to develop on and the
  one held out for the final score).

Everything that is drawn at random is drawn from a fixed seed, so the command gives the same words and splits
again; the WebP bytes depend on the libwebp inside Pillow, whose version PROVENANCE.md names.
"""

import argparse
import colorsys
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

PACKAGES = {
    "@lobehub/fluent-emoji-3d@1.1.0": "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "emojibase-data@17.0.0": "emojibase-data-17.0.0.tgz",
}
SIZE = 64
QUALITY = 80
ALPHA_LEVELS = 8  # a full alpha channel would take as many bytes as the colours do
COLORS = {
    "red": (215, 35, 40),
    "orange": (245, 135, 25),
    "yellow": (250, 210, 40),
    "green": (45, 165, 65),
    "blue": (40, 110, 230),
    "purple": (135, 60, 190),
    "pink": (250, 120, 180),
    "gray": (140, 140, 140),
}
# Group keys of emojibase -> the one word that answers "What category is this?"; no components, no flags.
GROUPS = {
    "smileys-emotion": "smileys",
    "people-body": "people",
    "animals-nature": "animals",
    "food-drink": "food",
    "travel-places": "travel",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
}
# Subgroups of things that stay recognisable in any colour.
RECOLOURED_SUBGROUPS = frozenset(
    "animal-mammal animal-bird animal-marine animal-bug animal-reptile animal-amphibian food-fruit "
    "food-vegetable food-sweet plant-flower plant-other clothing transport-ground transport-air "
    "transport-water music musical-instrument tool household game award-medal event drink".split()
)
NUM_OBJECTS = 129
HELD_OUT_NOUNS = 0.1
ASSETS = Path(__file__).resolve().parents[1] / "mmjax" / "recipes" / "demo" / "assets"


def read_packages(folder: Path) -> tuple[dict[str, bytes], list[dict], dict, str]:
    """Emoji files by id (lower-case code points, no variation selectors), English entries, names, licence."""
    emoji: dict[str, bytes] = {}
    with tarfile.open(folder / PACKAGES["@lobehub/fluent-emoji-3d@1.1.0"]) as archive:
        for member in archive:
            match = re.fullmatch(r"package/assets/(.+)\.webp", member.name)
            if match:
                emoji[match[1].replace("-fe0f", "").replace("fe0f-", "")] = archive.extractfile(member).read()
    with tarfile.open(folder / PACKAGES["emojibase-data@17.0.0"]) as archive:
        entries = json.load(archive.extractfile("package/en/data.json"))
        names = json.load(archive.extractfile("package/en/messages.json"))
        licence = archive.extractfile("package/LICENSE").read().decode()
    return emoji, entries, names, licence


def clean_label(label: str) -> str:
    """A label in plain lower-case words: "Japanese “here” button" -> "japanese here button"."""
    return label.lower().replace("“", "").replace("”", "").replace("’", "'").replace(":", "")


def select_concepts(emoji: dict[str, bytes], entries: list[dict], names: dict) -> list[dict]:
    """Concepts with a picture, without flags, components (skin tones, hair) and joined sequences."""
    group_key = {group["order"]: group["key"] for group in names["groups"]}
    subgroup_key = {subgroup["order"]: subgroup["key"] for subgroup in names["subgroups"]}
    concepts = []
    for entry in entries:
        group = GROUPS.get(group_key.get(entry.get("group")))
        concept_id = entry["hexcode"].lower().replace("-fe0f", "")
        if group is None or "200d" in concept_id or concept_id not in emoji:
            continue
        concepts.append(
            {
                "id": concept_id,
                "label": clean_label(entry["label"]),
                "group": group,
                "subgroup": subgroup_key[entry["subgroup"]],
                "split": "train",
            }
        )
    order = np.random.RandomState(0).permutation(len(concepts))
    for index in order[: int(len(concepts) * HELD_OUT_NOUNS)]:
        concepts[index]["split"] = "held_out"
    return concepts


def shrink(data: bytes) -> bytes:
    """A WebP of any size -> a 64 px WebP with alpha (Pillow resizes premultiplied: clean edges)."""
    image = Image.open(io.BytesIO(data)).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    pixels = np.asarray(image).copy()
    step = 255 / (ALPHA_LEVELS - 1)
    pixels[..., 3] = np.round(np.round(pixels[..., 3] / step) * step)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=QUALITY, alpha_quality=100, method=6)
    return out.getvalue()


def natural_color(webp: bytes) -> str:
    """The colour that most of the picture is nearest to, "gray" where under 15 % of it is colourful.

    Every opaque pixel whose saturation and value exceed a quarter votes, with its saturation as weight, for
    the colour nearest in hue (a circle, counted four times), saturation and value; the last two tell pink
    from red. Brown is none of the colours and goes to red or orange.
    """
    image = Image.open(io.BytesIO(webp)).convert("RGBA")
    opaque = np.asarray(image)[..., 3] > 128
    hsv = np.asarray(image.convert("RGB").convert("HSV"))[opaque] / 255
    colourful = hsv[(hsv[:, 1] > 0.25) & (hsv[:, 2] > 0.25)]
    if len(colourful) < 0.15 * len(hsv):
        return "gray"
    names = [name for name in COLORS if name != "gray"]
    anchors = np.array([colorsys.rgb_to_hsv(*(channel / 255 for channel in COLORS[name])) for name in names])
    gap = np.abs(colourful[:, None, 0] - anchors[:, 0])
    rest = colourful[:, None, 1:] - anchors[:, 1:]
    distance = (4 * np.minimum(gap, 1 - gap)) ** 2 + np.square(rest).sum(-1)
    votes = np.bincount(distance.argmin(1), weights=colourful[:, 1], minlength=len(names))
    return names[int(votes.argmax())]


def select_objects(concepts: list[dict], webp: dict[str, bytes]) -> list[dict]:
    """Draw the recoloured objects, among training concepts whose name is one word and no colour.

    Each object gives up two colours, neither its natural one; the least used colour so far is taken, so that
    every colour is held out equally often within one.
    """
    taboo = set(COLORS) | {"black", "white", "brown"}
    candidates = [
        concept
        for concept in concepts
        if concept["split"] == "train"
        and concept["subgroup"] in RECOLOURED_SUBGROUPS
        and re.fullmatch("[a-z]+", concept["label"])
        and concept["label"] not in taboo
    ]
    random = np.random.RandomState(3)
    chosen = sorted(random.permutation(len(candidates))[:NUM_OBJECTS])
    ids = [candidates[index]["id"] for index in chosen]
    objects = [{"id": concept_id, "natural": natural_color(webp[concept_id])} for concept_id in ids]
    for split in ("develop", "final"):
        used = dict.fromkeys(COLORS, 0)
        for index in random.permutation(NUM_OBJECTS):
            taken = {objects[index]["natural"], objects[index].get("develop")}
            free = [color for color in random.permutation(list(COLORS)).tolist() if color not in taken]
            color = min(free, key=used.get)
            used[color] += 1
            objects[index][split] = color
        print(f"held out to {split}: {used}")
    return objects


def write_zip(path: Path, webp: dict[str, bytes]) -> None:
    """Stored entries with a fixed time stamp, so that the same pictures give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for concept_id, data in webp.items():
            archive.writestr(zipfile.ZipInfo(f"{concept_id}.webp", (1980, 1, 1, 0, 0, 0)), data)


def json_rows(value: dict) -> str:
    """JSON with one line per row of each list, which reads and diffs better than either extreme."""
    parts = []
    for key, item in value.items():
        if isinstance(item, list):
            rows = ",\n  ".join(json.dumps(row) for row in item)
            parts.append(f'"{key}": [\n  {rows}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(item)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def licence_text(emojibase: str) -> str:
    """Both works are under the MIT licence; its text is the same but for the copyright lines."""
    terms = emojibase[emojibase.index("Permission is hereby granted") :].strip()
    return f"""# Licences of the files in this folder

The pictures in `emoji.zip` are Fluent Emoji (3D style), shrunk to 64 px. MIT License.

    Copyright (c) Microsoft Corporation. (Fluent Emoji, https://github.com/microsoft/fluentui-emoji)
    Copyright (c) 2023 LobeHub. (the npm package, https://github.com/lobehub/fluent-emoji)

The labels, groups and subgroups in `concepts.json` are from emojibase-data. MIT License.

    Copyright (c) 2017-2019 Miles Johnson (https://github.com/milesj/emojibase)

The terms of the MIT License, for each of them:

{terms}
"""


def provenance_text(folder: Path, assets: Path) -> str:
    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    libwebp = features.version_module("webp")
    packages = "\n".join(f"| {name} | {sha256(folder / file)} |" for name, file in PACKAGES.items())
    written = "\n".join(
        f"| {name} | {(assets / name).stat().st_size} | {sha256(assets / name)} |"
        for name in ("emoji.zip", "concepts.json")
    )
    return f"""# Where the files in this folder come from

Built by `python tools/build_emoji.py` with Pillow {PIL.__version__} and libwebp {libwebp}.

| npm package | SHA-256 of its .tgz |
|---|---|
{packages}

| file | bytes | SHA-256 |
|---|---|---|
{written}

Pictures: {SIZE} px WebP, quality {QUALITY}, alpha in {ALPHA_LEVELS} levels. Labels: English, lower case,
without typographic quotes and colons. Left out: flags, components (skin tones, hair), joined sequences.
"""


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--packages", type=Path, help="a folder that holds the two .tgz files already")
    parser.add_argument("--output", type=Path, default=ASSETS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.packages or Path(temporary)
        for name, file in PACKAGES.items():
            if not (folder / file).exists():
                subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True)
        emoji, entries, names, licence = read_packages(folder)
        concepts = select_concepts(emoji, entries, names)
        webp = {concept["id"]: shrink(emoji[concept["id"]]) for concept in concepts}
        content = {
            "colors": COLORS,
            "groups": list(GROUPS.values()),
            "concepts": concepts,
            "objects": select_objects(concepts, webp),
        }
        args.output.mkdir(parents=True, exist_ok=True)
        write_zip(args.output / "emoji.zip", webp)
        (args.output / "concepts.json").write_text(json_rows(content))
        (args.output / "LICENSE.md").write_text(licence_text(licence))
        (args.output / "PROVENANCE.md").write_text(provenance_text(folder, args.output))
    print(f"{len(concepts)} concepts, {sum(map(len, webp.values()))} bytes of pictures -> {args.output}")


if __name__ == "__main__":
    main()
