import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart, parse_record


def parts_of(conversation, index=0):
    return [
        part.text if isinstance(part, TextPart) else (part.port, part.source)
        for part in conversation.messages[index].parts
    ]


def test_plain_strings_and_roles():
    record = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Is <image> a word?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "assistant", "content": "No.", "train": False},
        ]
    }
    conversation = parse_record(record, "s1")
    assert [m.role for m in conversation.messages] == ["system", "user", "assistant", "assistant"]
    assert parts_of(conversation, 1) == ["Is <image> a word?"], "no images in the record: the mark is a word"
    assert [m.trained for m in conversation.messages] == [False, False, True, False]
    assert conversation.name == "s1" and conversation.branches == ()


def test_huggingface_and_openai_parts(tmp_path):
    pixels = np.zeros((3, 5, 3), np.uint8)
    picture = Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    root = str(tmp_path)
    content = [
        {"type": "text", "text": "look:"},
        {"type": "image", "path": "a/b.png"},
        {"type": "image", "url": "/abs/c.png"},
        {"type": "image", "image": pixels},
        {"type": "image", "image": picture},
        {"type": "image", "base64": encoded},
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "image_url", "image_url": {"url": "d.png"}},
        {"type": "image", "url": "file:///tmp/e.png"},
        {"type": "video", "path": "gs://bucket/v.mp4"},
        {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
        "and say",
    ]
    record = {
        "messages": [{"role": "user", "content": content}],
        "images": [{"bytes": None, "path": "x.png"}],
    }
    found = parts_of(parse_record(record, "s", root))
    assert found[0] == "look:" and found[-1] == "and say"
    assert found[1] == ("image", str(tmp_path / "a/b.png")) and found[2] == ("image", "/abs/c.png")
    assert found[3][1] is pixels and found[4][1] is picture
    assert found[5][1] == found[7][1] == found[11][1] == buffer.getvalue()
    assert found[6] == ("image", str(tmp_path / "x.png"))
    assert found[8] == ("image", str(tmp_path / "d.png")) and found[9] == ("image", "/tmp/e.png")
    assert found[10] == ("video", "gs://bucket/v.mp4") and found[11][0] == "audio"


def test_llava_records(tmp_path):
    record = {
        "id": "7",
        "image": ["a.jpg", "b.jpg"],
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "<image>\nWhat is it? And <image>?"},
            {"from": "gpt", "value": "A cat. I write <image> as a word."},
        ],
    }
    conversation = parse_record(record, "7", str(tmp_path))
    a, b = str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")
    assert parts_of(conversation, 1) == [("image", a), "\nWhat is it? And ", ("image", b), "?"]
    assert parts_of(conversation, 2) == ["A cat. I write <image> as a word."]
    assert [m.role for m in conversation.messages] == ["system", "user", "assistant"]
    one = {"image": "c.jpg", "conversations": [{"from": "human", "value": "<image>"}]}
    assert parts_of(parse_record(one, "one")) == [("image", "c.jpg")]
    film = {"video": "v.mp4", "conversations": [{"from": "human", "value": "<video> when?"}]}
    assert parts_of(parse_record(film, "film")) == [("video", "v.mp4"), " when?"]
    no_film = {"conversations": [{"from": "human", "value": "<video> when?"}]}
    assert parts_of(parse_record(no_film, "text")) == ["<video> when?"]


def test_marks_in_strings_take_the_listed_images():
    record = {
        "messages": [{"role": "user", "content": "<image><image> which?"}],
        "images": ["a.png", "b.png"],
    }
    assert parts_of(parse_record(record, "s")) == [("image", "a.png"), ("image", "b.png"), " which?"]


def test_branches_share_the_messages():
    record = {
        "messages": [{"role": "user", "content": [{"type": "image"}]}],
        "images": ["a.png"],
        "branches": [
            [{"role": "user", "content": "colour?"}, {"role": "assistant", "content": "red"}],
            [{"role": "user", "content": "shape?"}, {"role": "assistant", "content": "round"}],
        ],
    }
    conversation = parse_record(record, "s")
    assert len(conversation.messages) == 1 and len(conversation.branches) == 2
    assert conversation.branches[1][1] == Message("assistant", (TextPart("round"),))
    assert [part.source for part in conversation.media("image")] == ["a.png"]
    alone = parse_record({"messages": [], "branches": record["branches"]}, "s")
    assert alone.messages == () and len(alone.branches) == 2


def test_media_are_listed_in_order_with_those_of_branches_last():
    a, b, c, v = (
        MediaPart("image", "a"),
        MediaPart("image", "b"),
        MediaPart("image", "c"),
        MediaPart("video", "v"),
    )
    conversation = Conversation(
        (Message("user", (a, v)),), ((Message("user", (b,)),), (Message("user", (TextPart("x"), c)),)), "s"
    )
    assert conversation.media("image") == (a, b, c) and conversation.media("video") == (v,)


def user(content, **more):
    return {"messages": [{"role": "user", "content": content}], **more}


@pytest.mark.parametrize(
    "record, words",
    [
        ({"text": "x"}, ["messages", "conversations", "text"]),
        ({"messages": []}, ["messages is empty"]),
        ({"conversations": []}, ["conversations is empty"]),
        ({"messages": "hi"}, ["messages must be a list"]),
        ({"messages": [], "branches": [[]]}, ["branches[0] is empty"]),
        ({"messages": ["hi"]}, ["messages[0]", "role"]),
        ({"messages": [{"role": "wizard", "content": "x"}]}, ["messages[0]", "wizard", "assistant"]),
        ({"messages": [{"role": "user"}]}, ["messages[0]", "content"]),
        (user(""), ["messages[0] (user)", "empty"]),
        (user("  \n"), ["empty"]),
        (user([]), ["empty"]),
        (user([{"type": "text", "text": ""}]), ["content[0]", "empty"]),
        (user([{"type": "text"}]), ["content[0]", "None"]),
        (user([{"type": "imgae"}]), ["imgae", 'Did you mean "image"']),
        (user([{"type": "image"}, {"type": "image"}], images=["a"]), ["2 image", "1 image"]),
        (user([{"type": "image"}], images=["a", "b", "c"]), ["1 image", "3 image"]),
        (user("<image><image>", images=["a"]), ["2 image", "1 image"]),
        (user("nothing", images=["a"]), ["0 image", "1 image"]),
        (user([{"type": "image"}]), ["1 image", "0 image"]),
        (user([{"type": "image", "url": "https://x.org/a.png"}]), ["https://x.org/a.png", "remote"]),
        (user([{"type": "image_url", "image_url": {"url": "http://x.org/a.png"}}]), ["remote"]),
        (user([{"type": "image_url", "image_url": {}}]), ["image_url"]),
        (user([{"type": "image", "base64": "%%%"}]), ["base64"]),
        (user([{"type": "image", "url": "data:text/plain,hello"}]), ["data URL"]),
        (user([{"type": "image", "path": ""}]), ["content[0].path"]),
        (user([{"type": "image"}], images=[None]), ["images[0]"]),
        ({"image": "a", "conversations": [{"from": "human", "value": "no mark"}]}, ["0 image", "1 image"]),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, ["1 image", "0 image"]),
        ({"conversations": [{"from": "elf", "value": "x"}]}, ["conversations[0]", "elf", "human"]),
        ({"conversations": [{"from": "human"}]}, ["conversations[0]", "value"]),
    ],
)
def test_errors_name_the_sample_and_the_place(record, words):
    with pytest.raises(ValueError) as error:
        parse_record(record, "sample-31")
    for word in ["sample-31", *words]:
        assert word in str(error.value)
