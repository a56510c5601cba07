"""Regions of conversations as arrays of the image that the encoder sees: where they land, and what is an error."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmjax.data.collate import collate
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart, parse_record
from mmjax.data.image import ImageProcessor
from mmjax.data.items import Layout
from mmjax.data.processor import Processor
from mmjax.data.recipes import recipe_from_hf
from mmjax.data.region_places import image_numbers, placement
from mmjax.data.region_processor import RegionProcessor
from mmjax.data.regions import Region, RegionError, region_of
from mmjax.recipes.assemble import byte_tokenizer

SQUARE = {"height": 40, "width": 40}
PLAIN = {"do_normalize": False, "do_rescale": True}
RECIPES = {
    "padded": ImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE, pad_to_square=True, **PLAIN),
    "cut": ImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE, **PLAIN),
    "cut of a smaller one": ImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 31, "width": 30}, **PLAIN
    ),
    "squeezed": ImageProcessor(size={"height": 24, "width": 36}, do_center_crop=False, **PLAIN),
}
BOX = (20.0, 12.0, 44.0, 30.0)


def picture(size=(60, 90)):
    """Black, and white in BOX."""
    pixels = np.zeros((*size, 3), np.uint8)
    x1, y1, x2, y2 = map(int, BOX)
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels)


def as_region(kind):
    if kind == "box":
        return region_of({"box": list(BOX), "pixels": True})
    if kind == "mask":
        return region_of({"mask": np.asarray(picture())[..., 0]})
    x1, y1, x2, y2 = BOX
    return region_of({"mask": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], "pixels": True})


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["box", "mask", "polygon"])
@pytest.mark.parametrize("size", [(60, 90), (83, 61)])
def test_regions_lie_where_the_processed_image_shows_them(name, kind, size):
    recipe = RECIPES[name]
    white = recipe(picture(size))[..., 0]
    region = as_region(kind) if kind != "mask" else region_of({"mask": np.asarray(picture(size))[..., 0]})
    place = placement(recipe, size)
    masks = RegionProcessor("masks", white.shape)
    mask = masks(masks.open(region, "s", place))
    # Edges are blurred by resizing; away from them the two agree.
    clear = (white < 0.02) | (white > 0.98)
    assert (mask[clear] == (white[clear] > 0.5)).mean() > 0.985 and mask.any()
    boxes = RegionProcessor("boxes")
    x1, y1, x2, y2 = boxes(boxes.open(region, "s", place)) * np.tile(white.shape[::-1], 2)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    np.testing.assert_allclose((x1, y1, x2, y2), found, atol=1.3)


def test_points_are_discs_and_thin_regions_keep_a_pixel():
    place = placement(RECIPES["padded"], (60, 90))
    recipe = RegionProcessor("masks", (90, 90), point_radius=0.1)
    mask = recipe(recipe.open(region_of({"point": [0.5, 0.5]}), "s", place))
    assert mask.sum() == pytest.approx(np.pi * 81, rel=0.05)
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), 44.5, atol=0.6)
    box = RegionProcessor(point_radius=0.1)(recipe.open(region_of({"point": [45, 30], "pixels": True}), "s", place))
    np.testing.assert_allclose(box, [0.4, 0.4, 0.6, 0.6], atol=1e-6)
    thin = RegionProcessor("masks", (5, 5))
    assert thin(thin.open(region_of({"box": [0.41, 0.5, 0.42, 0.51]}), "s", place)).sum() == 1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"box": [0.1, 0.1, 1.2, 0.5]}, "outside of its image"),
        ({"box": [10, 10, 50, 50]}, '"pixels": true'),
        ({"box": [0.5, 0.5, 0.4, 0.9]}, "has no area"),
        ({"box": [0.1, 0.2, 0.3]}, "wanted 4 finite numbers"),
        ({"point": [float("nan"), 0.2]}, "wanted 2 finite numbers"),
        ({"mask": np.zeros((60, 90))}, "its mask is empty"),
        ({"mask": np.ones((9, 9))}, "its mask is .9, 9., its image .60, 90."),
        ({"mask": [[0.1, 0.1], [0.5, 0.5]]}, "2 corners"),
        ({"polygon": [0.1, 0.1, 0.1, 0.2, 0.1, 0.3]}, "no area"),
        ({"box": [0, 0, 1, 1], "point": [0, 0]}, "needs one of"),
        ({"box": [0, 0, 1, 1], "image": 2}, "is of image 2, but there are 1"),
        ({"box": [0, 0, 1, 1], "image": 0}, "its number, from 1"),
    ],
)
def test_bad_regions_name_the_sample(part, message):
    content = [{"type": "image", "image": picture()}, {"type": "region", **part}, {"type": "text", "text": "?"}]
    record = {"messages": [{"role": "user", "content": content}]}
    with pytest.raises(ValueError, match=message) as error:
        processor().sample(parse_record(record, "row 7"))
    assert "row 7" in str(error.value)


def test_what_the_cut_takes_away_is_an_error():
    recipe = RegionProcessor()
    opened = recipe.open(region_of({"box": [0, 0, 0.05, 0.5]}), "s", placement(RECIPES["cut"], (60, 120)))
    with pytest.raises(RegionError, match="row 7: nothing of it is left"):
        recipe(opened, "row 7")


def processor(takes="boxes", **options):
    tokenizer = byte_tokenizer().with_tokens(["<image>", "<region>"])
    item = Layout((40, 40, 3), tokens=lambda n: 4 * n)
    shape = (4,) if takes == "boxes" else (8, 8)
    region = RegionProcessor(takes, None if takes == "boxes" else shape)
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}"
        "{% endfor %}{{ eos_token }}{% endfor %}"
    )
    return Processor(
        tokenizer,
        {"image": RECIPES["padded"], "region": region},
        template,
        {"image": "<image>", "region": "<region>"},
        {"image": tokenizer.token_id("<image>"), "region": tokenizer.token_id("<region>")},
        lambda port, grid, size: {"image": 4, "region": 2}[port],
        layouts={"image": item, "region": Layout(shape, tokens=lambda n: 2 * n, parent="image")},
        **options,
    )


def turn(*parts, role="user"):
    return Message(role, tuple(TextPart(p) if isinstance(p, str) else p for p in parts))


def image():
    return MediaPart("image", picture())


def box(*numbers, **options):
    return MediaPart("region", Region(box=numbers, **options))


def test_batches_say_of_which_image_a_region_is():
    made, answer, half = processor(), turn("Yes.", role="assistant"), box(0, 0, 0.5, 1, image=1)
    talks = [
        Conversation((turn(image(), image(), "Is ", box(0, 0, 1, 1), " in ", half, "?"), answer), name="a"),
        Conversation((turn(image(), "No regions."), answer), name="b"),
        Conversation((turn(image(), box(0, 0, 1, 0.5)), answer, turn(image(), box(0.5, 0, 1, 1)), answer), name="c"),
    ]
    samples = [made.sample(talk) for talk in talks]
    batch = collate(samples, made.plan, pad_rows_to=4)
    regions = batch.media["region"]
    np.testing.assert_array_equal(regions.parent, [[2, 1], [0, 0], [1, 2], [0, 0]])
    np.testing.assert_array_equal(regions.segment_ids, [[1, 2], [0, 0], [1, 2], [0, 0]])
    # 60 x 90 pixels in the middle of a square of 90.
    np.testing.assert_allclose(regions.values[0], [[0, 1 / 6, 1, 5 / 6], [0, 1 / 6, 0.5, 5 / 6]], atol=1e-6)
    text = batch.text
    for row, count in enumerate([2, 0, 2]):
        shown = text.media_index[row][text.tokens[row] == made.media_tokens["region"]]
        np.testing.assert_array_equal(shown, 8 + np.arange(2 * count))
    without = collate(samples[1:2], made.plan)
    assert "region" not in without.media and without.media["image"].parent is None


def test_numbers_of_images_in_branches():
    shared = (turn(image(), box(0, 0, 1, 1)),)
    branches = ((turn(image(), box(0, 0, 1, 1)),), (turn(box(0, 0, 1, 1), image(), box(0, 0, 1, 1, image=3)),))
    assert image_numbers(Conversation(shared, branches), "region", "image") == [1, 2, 1, 3]
    with pytest.raises(RegionError, match="x: region 0 stands before its image"):
        image_numbers(Conversation((turn(box(0, 0, 1, 1), image()),), name="x"), "region", "image")


def test_truncation_keeps_a_region_with_its_image():
    made = dataclasses.replace(processor(), lengths=(16,), too_long="truncate")
    talk = turn(image(), "a", box(0, 0, 1, 1), "b" * 5, image(), box(0, 0, 1, 1))
    sample = made.sample(Conversation((talk,)))
    assert [size.parent for size in sample.media_sizes["region"]] == [1] and len(sample.media["region"]) == 1


def test_records_list_regions_or_say_them_in_parts():
    record = {"images": [picture()], "regions": [{"box": [0, 0, 1, 1]}, {"point": [0.5, 0.5]}],
              "conversations": [{"from": "human", "value": "<image>Are <region> and <region> one?"},
                                {"from": "gpt", "value": "No."}]}  # fmt: skip
    parts = parse_record(record, "r").media("region")
    assert [part.source.box for part in parts] == [(0, 0, 1, 1), None] and parts[1].source.point == (0.5, 0.5)
    with pytest.raises(ValueError, match="2 region placeholder"):
        parse_record({**record, "regions": record["regions"][:1]}, "r")
    several = region_of({"mask": [[1, 1, 5, 1, 5, 5], [7, 7, 9, 7, 9, 9, 7, 9]]})
    assert [len(shape) for shape in several.polygon] == [3, 4]


def test_masks_from_files_and_recipes_from_theirs(tmp_path):
    Image.fromarray(np.asarray(picture())[..., 0]).save(tmp_path / "m.png")
    record = {"messages": [{"role": "user", "content": [
        {"type": "image", "image": picture()}, {"type": "region", "mask": "m.png"}]}]}  # fmt: skip
    made = processor("masks")
    (mask,) = made.sample(parse_record(record, "r", str(tmp_path))).media["region"]
    assert mask.shape == (8, 8) and 0 < mask.sum() < 16
    for recipe in made.images["region"], RegionProcessor(images="photo", point_radius=0.2):
        assert recipe_from_hf(recipe.to_hf(), "region") == recipe
    with pytest.raises(FileNotFoundError, match="n.png"):
        record["messages"][0]["content"][1]["mask"] = "n.png"
        made.sample(parse_record(record, "r", str(tmp_path)))
