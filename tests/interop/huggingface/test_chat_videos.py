"""Chat about videos: tokens, patches and replies are those of transformers, whose image processors see each frame.

Its video processors need a package that is not here; a patch over two frames is half of what its image processor makes
of the one and half of what it makes of the other.
"""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import mmjax
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.video_patches import VideoPatchesProcessor, clip_size

SPECIAL = ["<|end|>", "<pad>", "<image>", "<video>", "<|vision_start|>", "<|vision_end|>"]
END, PAD, IMAGE, VIDEO, START, STOP = range(6)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{% if p['type'] == 'video' %}MARK"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}assistant: "
)
TEXT = dict(
    vocab_size=262, hidden_size=36, intermediate_size=58, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=1, max_position_embeddings=512, eos_token_id=END, pad_token_id=PAD, bos_token_id=None,
)  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 3, 2], "rope_theta": 5000.0}}
VISION = dict(depth=2, num_heads=3, patch_size=3, temporal_patch_size=2, spatial_merge_size=2)
TOKENS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=STOP)


def qwen(kind):
    vision = {
        "Qwen2VL": dict(VISION, embed_dim=24, hidden_size=36, mlp_ratio=2),
        "Qwen2_5_VL": dict(VISION, hidden_size=24, out_hidden_size=36, intermediate_size=29, tokens_per_second=3,
                           window_size=14, fullatt_block_indexes=[1]),
        "Qwen3VL": dict(VISION, hidden_size=24, out_hidden_size=36, intermediate_size=29,
                        num_position_embeddings=16, deepstack_visual_indexes=[0]),
    }[kind]  # fmt: skip
    text = {**TEXT, **ROPE, **({"head_dim": 12} if kind == "Qwen3VL" else {})}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **TOKENS)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def saved(reference, place, template, **files):
    """The model with weights at random, a tokenizer and processor files in a directory; gives the tokenizer."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=262, special_tokens=SPECIAL, initial_alphabet=alphabet))
    names = dict(image_token="<image>", video_token="<video>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<pad>", extra_special_tokens=names, chat_template=template
    )
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            scale = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float(scale))
    reference.generation_config.eos_token_id = None
    reference.eval().save_pretrained(place)
    tokenizer.save_pretrained(place)
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return tokenizer


def film(frames, height=31, width=20):
    return [Image.fromarray(a) for a in np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)]


def halves(recipe, frames):
    """What a tower of patches over two frames takes; an odd frame at the end stands for two."""
    frames, found = [*frames, *frames[-1:]][: len(frames) + len(frames) % 2], []
    each = [recipe([frame], return_tensors="np")["pixel_values"] for frame in frames]
    for first, second in zip(each[::2], each[1::2], strict=True):
        one, other = (patches.reshape(len(patches), 3, 2, -1) for patches in (first, second))
        found.append(np.stack([one[:, :, 0], other[:, :, 1]], axis=2).reshape(len(first), -1))
    (grid,) = recipe(frames[:1], return_tensors="np")["image_grid_thw"]
    return np.concatenate(found), [len(found), *grid[1:].tolist()]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL"])
def test_qwen(tmp_path, kind, whole):
    """Five frames at 5 x 3 squares, or fewer where their pixels are counted together."""
    reference, frames = qwen(kind), film(5)
    bounds = dict(shortest_edge=100, longest_edge=700)
    # The bounds of the third are for all six frames.
    mine = {key: value * (6 if kind == "Qwen3VL" else 1) for key, value in bounds.items()}
    common = dict(patch_size=3, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    recipe = Qwen2VLImageProcessorPil(size=bounds, **common)
    video = "Qwen3VLVideoProcessor" if kind == "Qwen3VL" else "Qwen2VLVideoProcessor"
    tokenizer = saved(
        reference, tmp_path, TEMPLATE.replace("MARK", "<|vision_start|><video><|vision_end|>"),
        processor_config={"processor_class": f"{kind}Processor"}, preprocessor_config=recipe.to_dict(),
        video_preprocessor_config={"video_processor_type": video, "size": mine, **common},
    )  # fmt: skip
    messages = [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "when?"}]}]
    patches, grid = halves(recipe, frames)
    module = importlib.import_module(f"transformers.models.{MODULES[kind]}.processing_{MODULES[kind]}")
    meta = SimpleNamespace(fps=None, frames_indices=list(range(5)))
    inputs = {"video_grid_thw": np.array([grid]), "video_metadata": [meta]}
    words = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2), video_token="<video>",
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>",
    )  # fmt: skip
    theirs = getattr(module, f"{kind}Processor")
    words._calculate_timestamps = lambda *given: theirs._calculate_timestamps(words, *given)
    shown = theirs.replace_video_token(words, inputs, 0)
    # In Qwen3-VL the fences around the placeholder are those of its first and last frame, or part of each.
    shown = shown if kind == "Qwen3VL" else f"<|vision_start|>{shown}<|vision_end|>"
    text = tokenizer(f"user: {shown}when?<|end|>assistant: ", return_tensors="pt")
    text.pop("token_type_ids", None)

    model = mmjax.from_pretrained(tmp_path)
    sample = model.processor.sample(parse_record({"messages": messages}, "chat"), add_generation_prompt=True)
    assert sample.tokens.tolist() == text["input_ids"][0].tolist()
    np.testing.assert_allclose(np.concatenate(sample.media["video"]), patches, atol=1e-5)
    given = {"pixel_values_videos": patches.astype(np.float32), "video_grid_thw": np.array([grid])}
    given |= {"second_per_grid_ts": np.array([2 / 24])} if kind == "Qwen2_5_VL" else {}
    batch = model.batch(**{name: array.numpy() for name, array in text.items()}, **given)
    np.testing.assert_array_equal(batch.texts["text"].positions[0], sample.positions)
    if whole:
        arrays = {name: torch.tensor(array) for name, array in given.items()}
        kinds = (text["input_ids"] == VIDEO).int() * 2
        with torch.no_grad():
            out = reference.generate(
                **text, **arrays, mm_token_type_ids=kinds, max_new_tokens=5, do_sample=False, pad_token_id=PAD
            )
        reply = model.chat(messages, max_new_tokens=5, eos_token_id=())
        assert str(reply) == tokenizer.decode(out[0, -5:], skip_special_tokens=True)
        model.save_pretrained(tmp_path / "out")
        again = mmjax.from_pretrained(tmp_path / "out").processor
        back = again.sample(parse_record({"messages": messages}, "chat"), add_generation_prompt=True)
        assert back.tokens.tolist() == sample.tokens.tolist()


MODULES = {"Qwen2VL": "qwen2_vl", "Qwen2_5_VL": "qwen2_5_vl", "Qwen3VL": "qwen3_vl"}


def test_frames_of_a_file(tmp_path):
    """Two frames a second of an animation that has ten; times of steps are those of the middle of their frames."""
    frames = film(40)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    for family, wanted in (("Qwen2VL", range(0, 40, 5)), ("Qwen3VL", np.linspace(0, 39, 8).round())):
        config = {"video_processor_type": f"{family}VideoProcessor", "patch_size": 4}
        recipe = VideoPatchesProcessor.from_hf({**config, "size": {"shortest_edge": 64, "longest_edge": 9000}})
        clip = recipe.open(str(tmp_path / "a.gif"), "row 7")
        assert clip.indices == tuple(int(index) for index in wanted) and clip.fps == pytest.approx(10)
        source = recipe.source_of(clip)
        if family == "Qwen2VL":
            assert source.sizes[0].seconds == pytest.approx(1.0)
        else:
            pairs = np.array(clip.indices).reshape(-1, 2).mean(axis=1) / 10
            np.testing.assert_allclose(source.seconds, pairs)
        arrays = recipe(clip)
        assert [len(array) for array in arrays] == [int(np.prod(size.grid)) for size in source.sizes]
        assert VideoPatchesProcessor.from_hf(recipe.to_hf()) == recipe
    with pytest.raises(FileNotFoundError, match=r"row 8.*nothing\.gif: no such video file"):
        recipe.open(str(tmp_path / "nothing.gif"), "row 8")


def test_sizes_of_clips():
    """All frames together keep to the bounds, and sides are whole squares."""
    for frames, height, width in [(4, 30, 50), (7, 9, 200), (1, 3, 3), (64, 100, 100)]:
        found = clip_size(frames, height, width, 2, 8, 2000, 40000)
        assert all(side % 8 == 0 and side for side in found)
        if frames > 1:
            assert frames * found[0] * found[1] <= 40000 or found == (8, 8)
        assert max(round(frames / 2) * 2, 1) * found[0] * found[1] >= 2000 or frames == 1


@pytest.mark.parametrize(
    "kind",
    ["LlavaNextVideo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("LlavaOnevision", "VideoLlava"))],
)
def test_frames_as_items(tmp_path, kind):
    """Frames go one by one through what CLIP does to images."""
    tower = dict(hidden_size=30, intermediate_size=44, num_attention_heads=5, patch_size=7, image_size=35)
    text, side = {**TEXT, "num_attention_heads": 6, "num_key_value_heads": 2}, 35
    tokens = dict(image_token_index=IMAGE, video_token_index=VIDEO)
    if kind == "LlavaOnevision":
        config = transformers.LlavaOnevisionConfig(
            vision_config=transformers.SiglipVisionConfig(**tower, num_hidden_layers=2, vision_use_head=False),
            text_config=transformers.Qwen2Config(**text), image_grid_pinpoints=[[35, 70]], **tokens,
        )  # fmt: skip
    else:
        options = {"image_grid_pinpoints": [[35, 70]]} if kind == "LlavaNextVideo" else {"video_seq_length": 3 * 26}
        config = getattr(transformers, f"{kind}Config")(
            vision_config=transformers.CLIPVisionConfig(**tower, num_hidden_layers=3),
            text_config=transformers.LlamaConfig(**text), **options, **tokens,
        )  # fmt: skip
    reference = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    square, crop = {"height": side, "width": side}, kind != "LlavaOnevision"
    sizes = dict(size={"shortest_edge": side} if crop else square, crop_size=square, do_center_crop=crop)
    images = CLIPImageProcessorPil(**sizes)
    saved(
        reference, tmp_path, TEMPLATE.replace("MARK", "<video>\n"),
        processor_config={"processor_class": f"{kind}Processor"},
        video_preprocessor_config={"video_processor_type": f"{kind}VideoProcessor", **sizes},
    )  # fmt: skip
    frames = film(3)
    messages = [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "when?"}]}]
    model = mmjax.from_pretrained(tmp_path)
    sample = model.processor.sample(parse_record({"messages": messages}, "chat"), add_generation_prompt=True)
    pixels = images(frames, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(sample.media["video"][0], pixels.transpose(0, 2, 3, 1), atol=1e-5)
    with torch.no_grad():
        given = {"input_ids": torch.tensor(sample.tokens[None]), "pixel_values_videos": torch.tensor(pixels[None])}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        wanted = reference(**given).logits[0].numpy()
    logits = np.asarray(model.apply(model.params, collate([sample], model.processor.plan)).logits)[0, : len(sample)]
    assert np.abs(logits - wanted).max() <= 1e-4 * max(1.0, float(np.sqrt(np.mean(wanted**2))))
