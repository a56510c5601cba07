"""The demo's embedded pictures and what is held out of them."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmjax.recipes.demo.assets import FOLDER, load_assets, on_white, read_emoji, tint


@pytest.fixture(scope="module")
def assets():
    return load_assets()


def test_every_concept_has_a_picture(assets):
    plain = [picture for picture in assets.pictures if picture.color is None]
    assert len(plain) == 1384 and {picture.concept for picture in plain} == set(read_emoji())
    assert len({picture.name for picture in assets.pictures}) == len(assets.pictures)
    assert len({picture.noun for picture in plain}) == 1384
    assert {image.shape for image in read_emoji().values()} == {(64, 64, 4)}


def test_held_out_pairs(assets):
    splits = Counter(picture.split for picture in assets.pictures)
    assert len(assets.natural) == 129
    assert splits == {"train": 1384 - 138 + 129 * 6, "noun": 138, "develop": 129, "final": 129}
    for split in ("develop", "final"):
        held = assets.of(split)
        assert len({picture.concept for picture in held}) == 129
        assert all(picture.color != assets.natural[picture.concept] for picture in held)
        counts = Counter(picture.color for picture in held)
        assert set(counts) == set(assets.colors) and max(counts.values()) - min(counts.values()) <= 1
    develop, final = ({p.concept: p.color for p in assets.of(split)} for split in ("develop", "final"))
    assert all(develop[concept] != final[concept] for concept in assets.natural)


def test_both_words_of_a_held_out_pair_are_trained_apart(assets):
    shown = [picture for picture in assets.of("train") if picture.color]
    colors = {picture.color for picture in shown}
    nouns = Counter(picture.noun for picture in shown)
    for picture in assets.of("develop") + assets.of("final"):
        assert picture.color in colors and nouns[picture.noun] == 6
        assert picture.label not in {other.label for other in shown}


def test_held_out_nouns_are_never_trained(assets):
    held = {picture.concept for picture in assets.of("noun")}
    assert not held & {picture.concept for picture in assets.of("train")}
    assert not held & set(assets.natural)


def test_provenance_names_the_files_as_they_are():
    text = (FOLDER / "PROVENANCE.md").read_text()
    for name in ("emoji.zip", "concepts.json"):
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() in text
    assert "MIT License" in (FOLDER / "LICENSE.md").read_text()


def test_on_white_is_pillows_composition():
    image = next(iter(read_emoji().values()))
    ground = Image.new("RGBA", (64, 64), "white")
    ground.alpha_composite(Image.fromarray(image))
    assert np.abs(on_white(image).astype(int) - np.asarray(ground.convert("RGB"))).max() <= 1


def test_tint_paints_in_the_colour_and_keeps_the_ground(assets):
    picture = next(p for p in assets.pictures if p.noun == "frog" and p.color == "blue")
    image, painted = read_emoji()[picture.concept], assets.pixels(picture)
    assert painted.shape == (64, 64, 3) and painted.dtype == np.uint8
    assert (painted[image[..., 3] == 0] == 255).all()
    opaque = painted[image[..., 3] == 255].astype(int)
    assert (opaque[:, 2] > opaque[:, 0]).mean() > 0.95
    # Shading survives: what was brighter stays brighter.
    before, after = (x[image[..., 3] == 255].mean(-1) for x in (on_white(image), painted))
    assert np.corrcoef(before, after)[0, 1] > 0.8


def test_tint_of_a_transparent_picture_is_white():
    assert (tint(np.zeros((5, 7, 4), np.uint8), (10, 20, 30)) == 255).all()
