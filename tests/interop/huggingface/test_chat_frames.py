"""Videos from files whose frames go one by one: tokens, pixels and logits are those of transformers.

Its video processors need a package that is not here; each frame goes through its image processor, the frames are
chosen by its formulas written down again, and what stands in the text its processors say themselves.
"""

import json
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.instructblipvideo.processing_instructblipvideo import InstructBlipVideoProcessor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

import mmjax
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.wording import in_words

SPECIAL = ["<|end|>", "<pad>", "<bos>", "<image>", "<video>"]
END, PAD, BOS, IMAGE, VIDEO = range(5)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    "{% else %}<{{ p['type'] }}>\n{% endif %}{% endfor %}<|end|>{% endfor %}assistant: "
)
TEXT = dict(
    vocab_size=300, hidden_size=36, intermediate_size=58, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=900, eos_token_id=END, pad_token_id=PAD, bos_token_id=BOS,
)  # fmt: skip
VISION = dict(hidden_size=30, intermediate_size=44, num_attention_heads=5, num_hidden_layers=2, patch_size=7)
RATE, COUNT = 10, 36


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """An mp4 of COUNT frames of 48 x 32 pixels, and its frames as they are decoded."""
    path = tmp_path_factory.mktemp("film") / "a.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(COUNT):
            pixels = np.kron(random.integers(0, 256, (4, 6, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == COUNT
    return path, frames


def tokenizer_of(*more, **names):
    special = [*SPECIAL, *(token for token in (*more, *names.values()) if token not in SPECIAL)]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=999, special_tokens=special, initial_alphabet=alphabet))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<pad>", bos_token="<bos>", extra_special_tokens=names,
    )  # fmt: skip


def opened(reference, tokenizer, place, template=None, **files):
    """The model with weights at random in a directory, as we read it."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float(scale))
    reference.eval().save_pretrained(place)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(place)
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return mmjax.from_pretrained(place)


def sampled(model, *parts):
    messages = [{"role": "user", "content": list(parts)}]
    return model.processor.sample(parse_record({"messages": messages}, "chat"), add_generation_prompt=True)


def same_logits(model, reference, sample, **arrays):
    with torch.no_grad():
        given = {"input_ids": torch.tensor(sample.tokens[None].astype(np.int64)), **arrays}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        wanted = reference(**given).logits[0].numpy()
    logits = np.asarray(model.apply(model.params, collate([sample], model.processor.plan)).logits)[0, : len(sample)]
    assert np.abs(logits - wanted).max() <= 1e-4 * max(1.0, float(np.sqrt(np.mean(wanted**2))))


def again(model, place, *parts):
    """The tokens of what the processor that was written makes of the same."""
    model.processor.save(place)
    options = model.config.processor_options
    return sampled(SimpleNamespace(processor=mmjax.data.processor.load_processor(
        place, model.config.num_tokens, media_tokens=dict(model.config.media_tokens), **options
    )), *parts).tokens.tolist()  # fmt: skip


def test_internvl(tmp_path, film):
    """A film of which three frames are taken, then an image in tiles, both at one port in the order of the text."""
    path, frames = film
    names = dict(start_image_token="<img>", end_image_token="</img>", context_image_token="<image>")
    tokenizer = tokenizer_of(**names, video_token="<video>")
    reference = transformers.InternVLForConditionalGeneration(transformers.InternVLConfig(
        vision_config=dict(VISION, image_size=42), text_config=dict(TEXT, model_type="qwen2"), image_token_id=IMAGE
    ))  # fmt: skip
    size = {"height": 42, "width": 42}
    tiles = GotOcr2ImageProcessorPil(size=size, max_patches=4, crop_to_patches=True)
    model = opened(
        reference, tokenizer, tmp_path, TEMPLATE, preprocessor_config=tiles.to_dict(),
        processor_config={"processor_class": "InternVLProcessor"},
        video_preprocessor_config={
            "video_processor_type": "InternVLVideoProcessor", "size": size, "do_sample_frames": True, "num_frames": 3
        },
    )  # fmt: skip
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (31, 90, 3), np.uint8))
    parts = {"type": "video", "video": str(path)}, {"type": "text", "text": "or "}, {"type": "image", "image": image}
    sample = sampled(model, *parts)

    chosen = torch.arange(COUNT / 3 / 2, COUNT, COUNT / 3).int().tolist()
    whole = GotOcr2ImageProcessorPil(size=size, crop_to_patches=False)
    pixels = whole([Image.fromarray(frames[at]) for at in chosen], return_tensors="np")["pixel_values"]
    cut = tiles([image], return_tensors="np")
    words = SimpleNamespace(**{name: token for name, token in names.items()}, image_token="<image>", image_seq_length=9)
    shown = InternVLProcessor.replace_video_token(words, {"pixel_values_videos": pixels[None]}, 0)
    tiled = InternVLProcessor.replace_image_token(words, {"num_patches": cut["num_patches"]}, 0)
    text = f"user: {shown}\nor {tiled}\n<|end|>assistant: "
    assert sample.tokens.tolist() == tokenizer(text)["input_ids"]
    both = np.concatenate([pixels, cut["pixel_values"]]).astype(np.float32)
    np.testing.assert_allclose(np.stack(sample.media["image"]), both.transpose(0, 2, 3, 1), atol=1e-5)
    same_logits(model, reference, sample, pixel_values=torch.tensor(both))
    assert again(model, tmp_path / "out", *parts) == sample.tokens.tolist()
    # Frames that were chosen before are all taken; the order may be the other one.
    given = {"type": "video", "video": [Image.fromarray(frame) for frame in frames[:2]]}
    turned = sampled(model, parts[2], given)
    assert len(turned.media["image"]) == len(both) - 1
    np.testing.assert_array_equal(turned.media["image"][0], sample.media["image"][3])
    with pytest.raises(ValueError, match=r"chat: video 0: .*a\.mp4: too short: 36 frames, at least 99"):
        place = tmp_path / "video_preprocessor_config.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "num_frames": 99}))
        sampled(mmjax.from_pretrained(tmp_path), *parts)


def test_smolvlm(tmp_path, film, monkeypatch):
    """Two frames a second; the text says how many frames of how long a film, and when each is."""
    path, frames = film
    fake = dict(fake_image_token="<fake_token_around_image>", global_image_token="<global-img>")
    tokenizer = tokenizer_of("<end_of_utterance>", "<|im_start|>", **fake, image_token="<image>", video_token="<video>")
    reference = transformers.SmolVLMForConditionalGeneration(transformers.SmolVLMConfig(
        vision_config=dict(VISION, image_size=42), text_config=dict(TEXT, model_type="llama"), image_token_id=IMAGE,
        scale_factor=3, tie_word_embeddings=False,
    ))  # fmt: skip
    sizes = dict(size={"longest_edge": 84}, max_image_size={"longest_edge": 42})
    images = SmolVLMImageProcessorPil(**sizes)
    sampling = {"fps": 2, "max_frames": 64, "video_size": {"longest_edge": 84}}
    model = opened(
        reference, tokenizer, tmp_path, TEMPLATE, preprocessor_config=images.to_dict(),
        processor_config={"processor_class": "SmolVLMProcessor"},
        video_preprocessor_config={
            "video_processor_type": "SmolVLMVideoProcessor", "video_sampling": sampling,
            "max_image_size": {"longest_edge": 42},
        },
    )  # fmt: skip
    parts = {"type": "text", "text": "See "}, {"type": "video", "video": str(path)}, {"type": "text", "text": "when?"}
    sample = sampled(model, *parts)

    chosen = np.unique(np.linspace(0, COUNT - 1, 7, dtype=int))
    whole = SmolVLMImageProcessorPil(**sizes, do_image_splitting=False)
    pixels = whole([[Image.fromarray(frames[at]) for at in chosen]], return_tensors="np")["pixel_values"]
    metadata = SimpleNamespace(fps=RATE, timestamps=(chosen / RATE).tolist(), duration=COUNT / RATE)
    words = SimpleNamespace(**fake, image_token="<image>", image_seq_len=4)
    monkeypatch.setattr(processing_smolvlm, "num2words", lambda number: {7: "seven"}[number], raising=False)
    shown = processing_smolvlm.SmolVLMProcessor.replace_video_token(
        words, {"pixel_values": pixels, "video_metadata": [metadata]}, 0
    )
    messages = [{"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "video"}, parts[2]]}]
    text = tokenizer.apply_chat_template(
        messages, chat_template=processing_smolvlm.DEFAULT_CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    assert sample.tokens.tolist() == tokenizer(text.replace("<video>", shown), add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(np.stack(sample.media["image"]), pixels[0].transpose(0, 2, 3, 1), atol=1e-5)
    same_logits(model, reference, sample, pixel_values=torch.tensor(pixels))
    assert again(model, tmp_path / "out", *parts) == sample.tokens.tolist()


class Unchecked(InstructBlipVideoProcessor):
    """Theirs with anything for a video processor."""

    def check_argument_for_proper_class(self, *given):
        pass


def test_instructblipvideo(tmp_path, film):
    """Four frames from all over the film, and the words of the user beside them for the Q-Former."""
    path, frames = film
    reference = transformers.InstructBlipVideoForConditionalGeneration(transformers.InstructBlipVideoConfig(
        vision_config=dict(VISION, hidden_size=28, num_attention_heads=4, image_size=21),
        qformer_config=dict(vocab_size=300, hidden_size=25, num_hidden_layers=2, num_attention_heads=5,
                            intermediate_size=33, max_position_embeddings=24),
        text_config=transformers.LlamaConfig(**TEXT), num_query_tokens=3, video_token_index=VIDEO,
    ))  # fmt: skip
    reader, tokenizer = tokenizer_of(), tokenizer_of(video_token="<video>")
    reader.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <|end|>", special_tokens=[("<bos>", BOS), ("<|end|>", END)]
    )
    images = BlipImageProcessorPil(size={"height": 21, "width": 21})
    chosen = [int((at + 0.5) * COUNT / 4) for at in range(4)]
    pixels = images([Image.fromarray(frames[at]) for at in chosen], return_tensors="np")["pixel_values"]

    def video_processor(videos, return_tensors=None):
        return {"pixel_values": torch.tensor(pixels[None])}

    theirs = Unchecked.__new__(Unchecked)
    theirs.video_processor, theirs.tokenizer, theirs.qformer_tokenizer = video_processor, tokenizer, reader
    theirs.num_query_tokens, theirs.video_token = 3, transformers.AddedToken("<video>", special=True)
    wanted = theirs(images="film", text="what happens?", return_tensors="pt")

    reader.save_pretrained(tmp_path / "qformer_tokenizer")
    video = {"size": {"height": 21, "width": 21}}
    model = opened(
        reference, tokenizer, tmp_path, processor_config={"processor_class": "InstructBlipVideoProcessor"},
        video_preprocessor_config={"video_processor_type": "InstructBlipVideoVideoProcessor", **video},
    )
    parts = {"type": "video", "video": str(path)}, {"type": "text", "text": "what happens?"}
    sample = sampled(model, *parts)
    assert sample.tokens.tolist() == wanted["input_ids"][0].tolist()
    assert sample.instruction.tolist() == wanted["qformer_input_ids"][0].tolist()
    np.testing.assert_allclose(sample.media["video"][0], pixels.transpose(0, 2, 3, 1), atol=1e-5)
    read = {name: wanted[name] for name in ("pixel_values", "qformer_input_ids", "qformer_attention_mask")}
    same_logits(model, reference, sample, **read)
    assert again(model, tmp_path / "out", *parts) == sample.tokens.tolist()
    # Files from before there were video processors call it one of images.
    (tmp_path / "video_preprocessor_config.json").unlink()
    old = {"image_processor_type": "InstructBlipVideoImageProcessor", **video}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    assert sampled(mmjax.from_pretrained(tmp_path), *parts).tokens.tolist() == sample.tokens.tolist()


def test_numbers_in_words():
    said = {0: "zero", 1: "one", 12: "twelve", 20: "twenty", 21: "twenty-one", 64: "sixty-four", 100: "one hundred"}
    said |= {101: "one hundred and one", 128: "one hundred and twenty-eight", 999: "nine hundred and ninety-nine"}
    assert {number: in_words(number) for number in said} == said
    assert len({in_words(number) for number in range(1000)}) == 1000
