"""Boxes as text: round trips, the published spellings, transformers' KOSMOS-2, and text that models may write."""

import types

import numpy as np
import pytest
from transformers.models.kosmos2 import processing_kosmos2 as reference

from mmjax.config import ConfigError
from mmjax.data.boxes import CODECS, GROUNDING, BoxError

SIZE = (300, 401)
# How far a coordinate may move, as a share of the side: half a step, and for KOSMOS-2 a whole cell.
STEPS = {"shikra": 0.5e-3, "qwen_vl": 0.5 / 999, "kosmos2": 1 / 32, "paligemma": 0.5 / 1023, "ofa": 0.5 / 999}
SHARES = np.array([[0.1, 0.2, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]])
SPELT = {
    "shikra": "the cat [0.100,0.200,0.500,0.750;0.000,0.000,1.000,1.000]",
    "qwen_vl": "<ref>the cat</ref><box>(100,200),(500,749)</box><box>(0,0),(999,999)</box>",
    "kosmos2": "<phrase>the cat</phrase><object><patch_index_0195><patch_index_0751></delimiter_of_multi_objects/>"
    "<patch_index_0000><patch_index_1023></object>",
    "paligemma": "<loc0205><loc0102><loc0767><loc0512> the cat ; <loc0000><loc0000><loc1023><loc1023> the cat",
    "ofa": "<bin_100> <bin_200> <bin_500> <bin_749> the cat <bin_0> <bin_0> <bin_999> <bin_999> the cat",
}


def pixels(shares, size=SIZE):
    return np.asarray(shares) * (size[1], size[0], size[1], size[0])


def random_boxes(count, seed=0):
    random = np.random.default_rng(seed)
    first, extent = random.uniform(0, 0.9, (count, 2)), random.uniform(0.01, 0.6, (count, 2))
    return np.concatenate([first, np.minimum(first + extent, 1)], axis=1)


def together(parsed):
    return np.concatenate([group.boxes for group in parsed.groups])


@pytest.mark.parametrize("name", CODECS)
def test_spelling(name):
    assert CODECS[name].encode(pixels(SHARES), SIZE, "the cat") == SPELT[name]


@pytest.mark.parametrize("name", CODECS)
def test_round_trip(name):
    codec, shares = CODECS[name], random_boxes(200)
    text = codec.encode(pixels(shares), SIZE, "a dog")
    parsed = codec.decode(f"I see {text}", SIZE)
    moved = np.abs(together(parsed) / pixels(np.ones(4)) - shares)
    assert moved.max() <= STEPS[name] + 1e-9
    assert name == "kosmos2" or moved.max() <= 1e-3
    for group in parsed.groups if name != "shikra" else ():
        assert group.phrase == "a dog" == parsed.text[slice(*group.span)]
    # What was read is written the same way again.
    again = codec.encode(together(parsed), SIZE, "a dog")
    assert again == text or name == "kosmos2"


@pytest.mark.parametrize("name", CODECS)
def test_one_box_and_edges(name):
    codec = CODECS[name]
    # What sticks out is cut off; a single row is a box.
    text = codec.encode([-7.0, 30.0, 500.0, 60.0], SIZE)
    assert text == codec.encode([[0.0, 30.0, 401.0, 60.0]], SIZE)
    (group,) = codec.decode(text, SIZE).groups
    assert group.phrase is None and group.boxes.shape == (1, 4)
    assert group.boxes.min() >= 0 and (group.boxes[0] <= (401, 300, 401, 300)).all()


@pytest.mark.parametrize("name", CODECS)
def test_text_without_boxes(name):
    text = "Nothing is here: see [3], 4 < 5, (1,2) and [0.5,0.25]."
    assert CODECS[name].decode(f"  {text} ", SIZE) == (text, ())


def test_clean_text_and_spans():
    text, groups = CODECS["qwen_vl"].decode(
        " <ref> A man</ref><box>(10,20),(30,40)</box> with <box>(0,0),(999,999)</box><ref>a hat</ref>\n"
        "<box>(5,5),(9,9)</box><box>(1,2),(3,4)</box>.",
        SIZE,
    )
    assert text == "A man with a hat."
    assert [(group.phrase, group.span, len(group.boxes)) for group in groups] == [
        ("A man", (0, 5), 1), (None, (11, 11), 1), ("a hat", (11, 16), 2),
    ]  # fmt: skip
    text, groups = CODECS["shikra"].decode("A man [0.1,0.2,0.3,0.4] sits [0.5,0.6,0.7,0.8;0,0,1,1].", SIZE)
    assert text == "A man sits." and [group.span for group in groups] == [(5, 5), (10, 10)]
    more = " ; <loc0001><loc0002><loc0003><loc0004><seg001>"
    text, groups = CODECS["paligemma"].decode(SPELT["paligemma"] + more, SIZE)
    assert text == "the cat ; the cat ;" and [group.phrase for group in groups] == ["the cat", "the cat", None]
    np.testing.assert_allclose(groups[2].boxes, pixels([[2, 1, 4, 3]]) / 1023)


@pytest.mark.parametrize(
    "name, sloppy",
    [
        ("shikra", "cat [ 0.1 , 0.20,.5, 0.7500 ;0,0,1,1.0]"),
        ("shikra", "cat [0.5,0.75,0.1,0.2;1,1,0,0]"),
        ("qwen_vl", "<ref>cat</ref> <box> (100, 200), (500, 749) </box> <box>(0,0),(999,1000)"),
        ("qwen_vl", "<ref>cat</ref><box>(500,200),(100,749)</box><box>0,0,999,999</box>"),
        ("kosmos2", "<phrase> cat</phrase> <object> <patch_index_0195> <patch_index_0751> "
                    "</delimiter_of_multi_objects/> <patch_index_0000> <patch_index_1023>"),
        ("paligemma", "<loc0205> <loc0102><loc767><loc0512> <loc0000><loc0000><loc1023><loc1023>cat"),
        ("ofa", "<bin_100><bin_200><bin_500><bin_749>\n<bin_999><bin_999> <bin_0> <bin_0> cat"),
    ],
)  # fmt: skip
def test_sloppy_text(name, sloppy):
    expected = together(CODECS[name].decode(SPELT[name], SIZE))
    np.testing.assert_allclose(together(CODECS[name].decode(sloppy, SIZE)), expected)


@pytest.mark.parametrize(
    "name, wrong, message",
    [
        ("shikra", "a [0.1,0.2,0.3]", r"'\[0.1,0.2,0.3\]' at character 1: 3 numbers, but a box has 4"),
        ("shikra", "[0.1,0.2,0.3,0.4;0.5,0.5]", "2 numbers"),
        ("shikra", "[10,20,30,40]", "coordinate 40 is not in 0 to 1"),
        ("shikra", "[-0.1,0.2,0.3,0.4]", "coordinate -0.1 is not in 0 to 1"),
        ("qwen_vl", "<box>(1,2),(3</box>", "at character 0: 3 numbers"),
        ("qwen_vl", "<box>(1,2),(3,1001)</box>", "coordinate 1001 is not in 0 to 1000"),
        ("qwen_vl", "<box>(1,2),(3,4) and so on", "'andsoon' between the numbers"),
        ("kosmos2", "<object><patch_index_0001></object>", "1 patch indices, but a box has 2"),
        ("kosmos2", "<object><patch_index_0001><patch_index_1024></object>", "patch index 1024, but there are 1024"),
        ("kosmos2", "see <object>", "at character 4: 0 patch indices"),
        ("paligemma", "<loc0001><loc0002><loc0003> cat", "3 tokens, but a box has 4"),
        ("paligemma", "<loc0001><loc0002><loc0003><loc1024>", "bin 1024, but there are 1024"),
        ("ofa", "<bin_1> <bin_2> <bin_3> <bin_1000>", "bin 1000, but there are 1000"),
    ],
)  # fmt: skip
def test_malformed_text(name, wrong, message):
    codec = CODECS[name]
    with pytest.raises(BoxError, match=message):
        codec.decode(wrong, SIZE)
    parsed = codec.decode(f"{wrong.strip()} ", SIZE, malformed="skip")
    assert not parsed.groups and parsed.text == wrong.strip()
    with pytest.raises(ConfigError, match="malformed: 'ignore'"):
        codec.decode(wrong, SIZE, malformed="ignore")


@pytest.mark.parametrize("name", CODECS)
def test_boxes_that_cannot_be_written(name):
    codec = CODECS[name]
    good = [0, 0, 10, 10]
    for boxes, message in [
        ([good, [50, 20, 50, 40]], r"box 1, \[50.0, 20.0, 50.0, 40.0\] .* no area .* height 300 and width 401"),
        ([[500, 0, 600, 10]], "box 0, .* has no area"),
        ([[30, 20, 10, 40]], "box 0, .* has no area"),
        ([good, [0, 0, np.nan, 10]], "box 1 is not finite"),
        (np.zeros((2, 3)), r"got \[2, 3\]"),
        (np.zeros((0, 4)), r"got \[0, 4\]"),
    ]:  # fmt: skip
        with pytest.raises(BoxError, match=message):
            codec.encode(boxes, SIZE)
    with pytest.raises(BoxError, match="an image of height 0"):
        codec.encode([good], (0, 10))
    with pytest.raises(BoxError, match="phrase .* holds .* read as markup"):
        codec.encode([good], SIZE, f"cat {codec.encode([good], SIZE)}")


def test_kosmos2_is_written_as_transformers_writes_it():
    codec, shares = CODECS["kosmos2"], random_boxes(300, seed=3)
    for box in shares:
        first, last = reference.coordinate_to_patch_index(tuple(box), 32)
        assert codec.encode(box, (1, 1)) == f"<object><patch_index_{first:04d}><patch_index_{last:04d}></object>"
    theirs = types.SimpleNamespace(num_patch_index_tokens=1024)
    theirs._convert_bbox_to_patch_index_tokens = lambda box: (
        reference.Kosmos2Processor._convert_bbox_to_patch_index_tokens(theirs, box)
    )
    boxes = [tuple(map(float, box)) for box in shares[:2]]
    text = reference.Kosmos2Processor._insert_patch_index_tokens(theirs, "<phrase>a dog</phrase>", [boxes])
    assert codec.encode(boxes, (1, 1), "a dog") == text.replace("> <", "><")


@pytest.mark.parametrize(
    "text",
    [
        f"{GROUNDING} An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> "
        "warming himself by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>.",
        f"<image></image>{GROUNDING}<phrase> two cats </phrase><object><patch_index_0000><patch_index_0000>"
        "</delimiter_of_multi_objects/><patch_index_0100><patch_index_0110></object> and<phrase> none</phrase>",
        f"  {GROUNDING} Where?<object><patch_index_0031><patch_index_0991></object> There.</s>",
        "Only text.  ",
    ],
)
def test_kosmos2_is_read_as_transformers_reads_it(text):
    clean, entities = reference.clean_text_and_extract_entities_with_bboxes(text)
    parsed = CODECS["kosmos2"].decode(text, (1, 1))
    assert parsed.text == clean and len(parsed.groups) == len(entities)
    for group, (name, span, boxes) in zip(parsed.groups, entities, strict=True):
        # transformers names boxes without a phrase by their tokens.
        assert group.phrase == (None if name.startswith("<patch_index") else name)
        assert group.span == span
        np.testing.assert_allclose(group.boxes, boxes, atol=1e-12)


def test_kosmos2_corners_are_those_of_transformers():
    random = np.random.default_rng(1)
    for row, column, rows, columns in random.integers(0, 16, (200, 4)):
        first, last = 32 * row + column, 32 * (row + rows) + column + columns
        text = f"<object><patch_index_{first:04d}><patch_index_{last:04d}></object>"
        expected = reference.patch_index_to_coordinate(int(first), int(last), 32)
        np.testing.assert_allclose(together(CODECS["kosmos2"].decode(text, (1, 1)))[0], expected, atol=1e-12)
