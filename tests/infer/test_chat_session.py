"""A chat session: what it remembers, what it streams, and that no mistake of its user ends it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.image import ImageProcessor
from mmjax.data.processor import Processor
from mmjax.data.tokenizer import load_tokenizer
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.chat import ChatSession, Reply, TextStreamer, interactive, save_media
from mmjax.infer.generate import GenerateOptions, Programs, generate
from mmjax.infer.retrieve import Retrieved
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

SPECIAL = ["<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIDE = 8


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A tiny model that sees and speaks bytes, its parameters and its processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(SPECIAL + bytes_)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))

    vision = ViTConfig(image_size=SIDE, patch_size=4, width=12, num_layers=1, num_heads=2, mlp_width=20)
    backbone = DecoderConfig(len(SPECIAL) + 256, 24, 2, 3, 1, 8, 40, max_positions=128)
    config = MultimodalLMConfig(
        backbone, {"image": vision}, {"image": LinearProjectorConfig(vision.feature_width, 24)}, {"image": 2}
    )
    model = MultimodalLM(config)
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(np.float32) * 0.3), model.param_shapes()
    )
    processor = Processor(
        tokenizer=load_tokenizer(str(path)),
        images={"image": ImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)},
        template=TEMPLATE,
        placeholders={"image": "<image>"},
        media_tokens={"image": 2},
        count=model.num_tokens,
        lengths=(64, 128),
        items={"image": (0, 2)},
    )
    return model, params, processor


@pytest.fixture(scope="module")
def programs(system):
    return Programs(system[0])


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


OPTIONS = GenerateOptions(max_new_tokens=12, stop_ids=(1,))


@pytest.fixture
def session(system, programs):
    return ChatSession(*system, OPTIONS, programs)


def user(text, *images):
    return {
        "role": "user",
        "content": [*({"type": "image", "path": i} for i in images), {"type": "text", "text": text}],
    }


def expected(system, programs, messages, row):
    """The reply to HF messages by the parts the session is made of."""
    model, params, processor = system
    sample = processor.sample(parse_record({"messages": messages}, "test"), add_generation_prompt=True)
    out = generate(model, params, collate([sample], processor.plan), OPTIONS, programs, rows=np.array([row]))
    ids = out.tokens[0, : out.lengths[0]].tolist()
    return processor.tokenizer.decode(ids[:-1] if ids[-1] == 1 else ids)


def test_replies_see_everything_said_before(system, programs, session, picture):
    first = session.reply("Hi there", [picture])
    messages = [user("Hi there", str(picture))]
    assert first == expected(system, programs, messages, 0)
    second = session.reply("And?")
    messages += [{"role": "assistant", "content": [{"type": "text", "text": first}]}, user("And?")]
    assert second == expected(system, programs, messages, 2)
    assert [message.role for message in session.messages] == ["user", "assistant", "user", "assistant"]
    session.reset()
    assert session.reply("Hi there", [picture]) == first


def test_streamed_pieces_join_to_the_reply(system, programs):
    for seed in range(4):
        options = GenerateOptions(max_new_tokens=20, do_sample=True, temperature=3.0, seed=seed, stop_ids=(1,))
        session = ChatSession(*system, options, programs)
        pieces = []
        reply = session.reply("Hello", on_text=pieces.append)
        assert "".join(pieces) == reply and len(pieces) > 3 and "" not in pieces
        session.reset()
        assert session.reply("Hello") == reply


def test_a_control_token_spelt_by_the_user_is_text(system, session):
    session.reply("say <image> and </s>")
    ids = session.processor.sample(
        parse_record({"messages": [user("say <image> and </s>")]}, "test"), add_generation_prompt=True
    ).tokens.tolist()
    assert 2 not in ids and ids.count(1) == 1


def test_the_system_message_stays_after_a_reset(system, programs):
    session = ChatSession(*system, OPTIONS, programs, system="Be brief.")
    session.reply("a")
    session.reset()
    assert [message.role for message in session.messages] == ["system"]


def test_a_reply_gets_the_room_that_is_left_and_then_an_error_leaves_the_conversation(system, programs):
    session = ChatSession(*system, GenerateOptions(max_new_tokens=16, stop_ids=()), programs)
    session.reply("x" * 110)  # 110 bytes, <|user|>, </s>, <|assistant|>: 15 positions are left
    before = list(session.messages)
    with pytest.raises(ValueError, match="128"):
        session.reply("more")
    assert session.messages == before


def test_nothing_said_and_bad_images_are_refused(session, tmp_path):
    with pytest.raises(ValueError, match="nothing said"):
        session.reply("  ")
    with pytest.raises(FileNotFoundError, match="gone.png"):
        session.reply("what is this", [tmp_path / "gone.png"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="broken.png"):
        session.reply("what is this", [broken])
    assert session.messages == []


def test_images_to_a_model_without_an_image_port_are_refused(system, programs, picture):
    session = ChatSession(*system, OPTIONS, programs, image_port="thermal")
    with pytest.raises(ValueError, match="thermal.*image"):
        session.image(picture)


def test_media_of_a_reply_are_saved_under_names_that_are_free(tmp_path):
    reply = Reply("here you are")
    reply.images = (np.zeros((2, 3, 3)), np.ones((2, 3, 3)))
    for number in range(2):
        paths = [tmp_path / "new" / f"reply_{number:03d}_{image}.png" for image in range(2)]
        assert save_media(reply, tmp_path / "new") == [f"saved {path}" for path in paths]
        assert [np.asarray(Image.open(path)).mean() for path in paths] == [0, 255]
    assert save_media(Reply("nothing"), tmp_path / "none") == [] and not (tmp_path / "none").exists()
    found = Retrieved(0, np.array([3, 1]), np.array([0.5, 0.25]), ("c.png", "a.png"))
    codes = Reply()
    codes.image_codes, codes.retrieved = (np.zeros((2, 3), int),), {"find": (found,)}
    assert save_media(codes, tmp_path) == [
        "images of 2 x 3 codes, which this checkpoint has no decoder for", "find: c.png (0.500), a.png (0.250)",
    ]  # fmt: skip


def test_a_model_that_cannot_be_asked_for_an_image_says_so(session):
    terminal = talk(session, "/draw a cat", "/help")
    assert "error: this model writes no images as tokens" in terminal.out and "/draw TEXT" in terminal.out
    assert session.messages == []


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語 and 🐸🐸 frogs", "\ufffd in the text, at the end \ufffd"]
)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_streamer_never_tells_half_a_character(text, size):
    data = list(text.encode())
    streamer = TextStreamer(lambda ids: bytes(ids).decode(errors="replace"))
    pieces = [streamer.push(data[i : i + size]) for i in range(0, len(data), size)]
    assert "".join(pieces) + streamer.finish() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces) and streamer.finish() == ""


class Terminal:
    """Lines a person types, and all that is printed; an exception among the lines is raised when read."""

    def __init__(self, *lines):
        self.lines, self.prompts, self.out = list(lines), [], ""

    def read(self, prompt):
        self.prompts.append(prompt)
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    def write(self, *args, end="\n", flush=False):
        self.out += " ".join(map(str, args)) + end


def talk(session, *lines):
    terminal = Terminal(*lines)
    interactive(session, terminal.read, terminal.write)
    return terminal


def test_the_loop_answers_and_ends_at_ctrl_d(system, programs, session):
    terminal = talk(session, "Hi", "", "   ")
    assert session.messages[-1].parts[0].text + "\n" in terminal.out
    assert session.messages[-1].parts[0].text == expected(system, programs, [user("Hi")], 0)
    assert len(session.messages) == 2


def test_the_loop_attaches_images_and_survives_wrong_ones(session, picture):
    terminal = talk(
        session,
        "/image nowhere.png",
        "/image",
        f"/image {picture}",
        f"/image '{picture}'",
        "what are these",
        "and now",
        "/quit",
        "never read",
    )
    assert "error" in terminal.out and "nowhere.png" in terminal.out and "/image needs a path" in terminal.out
    assert terminal.out.count(f"attached {picture} (13 x 9)") == 2
    assert terminal.prompts == ["you> "] * 3 + ["you (1 image)> ", "you (2 images)> ", "you> ", "you> "]
    counts = [sum(not hasattr(part, "text") for part in m.parts) for m in session.messages if m.role == "user"]
    assert counts == [2, 0] and terminal.lines == ["never read"]


def test_the_loop_tells_errors_of_a_reply_and_goes_on(session):
    terminal = talk(session, "y" * 200, "Hi")
    assert "error: chat: 203 tokens" in terminal.out
    assert len(session.messages) == 2


def test_commands(session):
    terminal = talk(session, "Hi", "/reset", "/seed 5", "/seed x", "/seed", "/help", "/hepl", "/seed 99999999999")
    assert session.messages == [] and session.options.seed == 5
    assert "without effect" in terminal.out and "not 'x'" in terminal.out and "forgotten" in terminal.out
    assert "unknown command /hepl" in terminal.out and terminal.out.count("/image PATH") == 2
    assert "error: seed must lie" in terminal.out


def test_ctrl_c_stops_a_reply_or_says_how_to_leave(session, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "reply", interrupted)
    terminal = talk(session, KeyboardInterrupt(), "Hi", "/quit")
    assert "/quit or Ctrl-D leaves" in terminal.out and "that question is forgotten" in terminal.out
