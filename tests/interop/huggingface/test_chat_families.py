"""Chat about image files, family by family: tokens, arrays and replies are those of transformers' own processors.

Around and between the tokens of an image stand the words that each family's processor writes there.
"""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm as smolvlm_words
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

import mmjax
from mmjax import cli
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record

SPECIAL = ["<|end|>", "<pad>", "<bos>", "<image>"]
END, PAD, BOS, IMAGE = range(4)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}{% if part['type'] == 'image' %}MARK"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
VISION = dict(hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=5, patch_size=7)
MODULES = {
    "LlavaOnevisionProcessor": "llava_onevision",
    "InternVLProcessor": "internvl",
    "PixtralProcessor": "pixtral",
    "SmolVLMProcessor": "smolvlm",
}
TEXT = dict(
    hidden_size=36, intermediate_size=58, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
    max_position_embeddings=1024, eos_token_id=END, pad_token_id=PAD, bos_token_id=BOS, vocab_size=400,
)  # fmt: skip


def tokenizer_of(*more, **names):
    """Bytes and control tokens; `names` are those that a processor asks its tokenizer for."""
    special = [*SPECIAL, *more, *(token for token in names.values() if token not in (*SPECIAL, *more))]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=999, special_tokens=special, initial_alphabet=alphabet))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<pad>", bos_token="<bos>",
        extra_special_tokens=names or [t for t in special if t not in SPECIAL[:3]],
    )  # fmt: skip


def unchecked(name, images, tokenizer, **options):
    """Their processor where a package that it asks for and does not use here is missing (videos, torchvision)."""
    where = f"transformers.models.{MODULES[name]}"
    if name == "PixtralProcessor":
        sys.modules[f"{where}.image_processing_pixtral"] = image_processing_pil_pixtral
    module = importlib.import_module(f"{where}.processing_{MODULES[name]}")
    cls = type(name, (getattr(module, name),), {"check_argument_for_proper_class": lambda *given: None})
    processor = cls(images, tokenizer, **options)

    def save(place):
        tokenizer.chat_template = options["chat_template"]
        tokenizer.save_pretrained(place)
        images.save_pretrained(place)
        names = ("patch_size", "spatial_merge_size", "image_token", "image_break_token", "image_end_token")
        said = {"processor_class": name} | {key: options[key] for key in names if key in options}
        (place / "processor_config.json").write_text(json.dumps(said))

    processor.save_pretrained = save
    return processor


def paligemma():
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, image_size=21, vision_use_head=False),
        text_config=transformers.GemmaConfig(**{**TEXT, "vocab_size": 1500}, head_dim=10),
        image_token_index=IMAGE, projection_dim=36,
    )  # fmt: skip
    images = SiglipImageProcessorPil(size={"height": 21, "width": 21})
    images.image_seq_length = 9
    processor = transformers.PaliGemmaProcessor(images, tokenizer_of(image_token="<image>"))
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def gemma3():
    names = dict(boi_token="<start>", eoi_token="<stop>", image_token="<image>")
    tokenizer = tokenizer_of(**names)
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**VISION, image_size=42, vision_use_head=False),
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=10, query_pre_attn_scalar=12, sliding_window=16),
        image_token_index=IMAGE, mm_tokens_per_image=9,
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size={"height": 42, "width": 42})
    processor = transformers.Gemma3Processor(
        images, tokenizer, chat_template=TEMPLATE.replace("MARK", "<start>"), image_seq_length=9
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def onevision():
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, image_size=21, vision_use_head=False),
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_index=IMAGE, video_token_index=4, vision_aspect_ratio="anyres_max_2",
        image_grid_pinpoints=[[21, 42], [42, 42], [42, 21], [63, 42]],
    )  # fmt: skip
    images = LlavaOnevisionImageProcessorPil(
        size={"height": 21, "width": 21}, image_grid_pinpoints=config.image_grid_pinpoints
    )
    processor = unchecked(
        "LlavaOnevisionProcessor", images, tokenizer_of("<video>"), num_image_tokens=9,
        vision_feature_select_strategy="full", chat_template=TEMPLATE.replace("MARK", "<image>\n"),
        vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def internvl():
    names = dict(start_image_token="<img>", end_image_token="</img>", context_image_token="<image>")
    tokenizer = tokenizer_of(**names, video_token="<video>")
    config = transformers.InternVLConfig(
        vision_config=dict(VISION, image_size=42), text_config=dict(TEXT, model_type="qwen2"), image_token_id=IMAGE
    )
    images = GotOcr2ImageProcessorPil(size={"height": 42, "width": 42}, max_patches=4)
    processor = unchecked(
        "InternVLProcessor", images, tokenizer, image_seq_length=9, chat_template=TEMPLATE.replace("MARK", "<image>\n")
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def mistral3():
    vision = dict(VISION, num_attention_heads=5, model_type="pixtral", patch_size=5, image_size=60, hidden_act="silu")
    vision |= dict(hidden_size=40, rope_parameters={"rope_type": "axial", "rope_theta": 1000.0})
    config = transformers.Mistral3Config(
        vision_config=vision, text_config=dict(TEXT, model_type="mistral", head_dim=8, sliding_window=None),
        image_token_index=IMAGE, spatial_merge_size=2, tie_word_embeddings=False,
    )  # fmt: skip
    processor = unchecked(
        "PixtralProcessor", PixtralImageProcessorPil(size={"longest_edge": 60}, patch_size=5),
        tokenizer_of("[IMG_BREAK]", "[IMG_END]"), patch_size=5, spatial_merge_size=2, image_token="<image>",
        image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]",
        chat_template=TEMPLATE.replace("MARK", "<image>"),
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration(config), processor


def idefics2(splits=False):
    perceiver = dict(hidden_size=36, resampler_n_latents=3, resampler_depth=2, resampler_n_heads=4)
    perceiver |= dict(num_key_value_heads=2, resampler_head_dim=6)
    config = transformers.Idefics2Config(
        vision_config=dict(VISION, image_size=35), text_config=dict(TEXT, model_type="mistral"),
        perceiver_config=perceiver, image_token_id=IMAGE,
    )  # fmt: skip
    processor = transformers.Idefics2Processor(
        Idefics2ImageProcessorPil(size={"shortest_edge": 15, "longest_edge": 35}, do_image_splitting=splits),
        tokenizer_of("<end_of_utterance>", "<fake_token_around_image>"),
        image_seq_len=3, chat_template=TEMPLATE.replace("MARK", "<image>"),
    )  # fmt: skip
    return transformers.Idefics2ForConditionalGeneration(config), processor


def tiled(kind, images):
    config = getattr(transformers, f"{kind}Config")(
        vision_config=dict(VISION, image_size=42), text_config=dict(TEXT, model_type="llama"), image_token_id=IMAGE,
        scale_factor=3, tie_word_embeddings=False,
    )  # fmt: skip
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places]
    names = dict(fake_image_token=words[0], image_token="<image>", end_of_utterance_token=words[1])
    names |= dict(global_image_token=words[2]) | {place[1:-1] + "_token": place for place in places}
    made = images(size={"longest_edge": 84}, max_image_size={"longest_edge": 42})
    options = dict(image_seq_len=4, chat_template=TEMPLATE.replace("MARK", "<image>"))
    if kind == "Idefics3":
        processor = transformers.Idefics3Processor(made, tokenizer_of(*words), **options)
    else:
        smolvlm_words.num2words = str
        processor = unchecked("SmolVLMProcessor", made, tokenizer_of(**names), video_processor=None, **options)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor


def blip2():
    config = transformers.Blip2Config(
        vision_config=dict(VISION, hidden_size=28, num_attention_heads=4, image_size=21),
        qformer_config=dict(vocab_size=41, hidden_size=25, num_hidden_layers=2, num_attention_heads=5,
                            intermediate_size=33, max_position_embeddings=11),
        text_config=transformers.LlamaConfig(**TEXT), num_query_tokens=3, image_token_index=IMAGE,
    )  # fmt: skip
    images = BlipImageProcessorPil(size={"height": 21, "width": 21})
    processor = transformers.Blip2Processor(images, tokenizer_of(image_token="<image>"), num_query_tokens=3)
    processor.image_token = transformers.AddedToken("<image>", normalized=False, special=True)
    return transformers.Blip2ForConditionalGeneration(config), processor


def instructblip():
    config = transformers.InstructBlipConfig(
        vision_config=dict(VISION, hidden_size=28, num_attention_heads=4, image_size=21),
        qformer_config=dict(vocab_size=300, hidden_size=25, num_hidden_layers=2, num_attention_heads=5,
                            intermediate_size=33, max_position_embeddings=24),
        text_config=transformers.LlamaConfig(**TEXT), num_query_tokens=3, image_token_index=IMAGE,
    )  # fmt: skip
    reader = tokenizer_of()
    frame = processors.TemplateProcessing(single="<bos> $A <|end|>", special_tokens=[("<bos>", BOS), ("<|end|>", END)])
    reader.backend_tokenizer.post_processor = frame
    images = BlipImageProcessorPil(size={"height": 21, "width": 21})
    processor = transformers.InstructBlipProcessor(
        images, tokenizer_of(image_token="<image>"), reader, num_query_tokens=3
    )
    processor.image_token = transformers.AddedToken("<image>", normalized=False, special=True)
    return transformers.InstructBlipForConditionalGeneration(config), processor


def kosmos2():
    text = dict(vocab_size=1400, embed_dim=36, layers=2, ffn_dim=46, attention_heads=6, max_position_embeddings=200)
    config = transformers.Kosmos2Config(
        text_config=dict(text, eos_token_id=None), vision_config=dict(VISION, image_size=21), latent_query_num=64
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 21}, crop_size={"height": 21, "width": 21})
    tokenizer = tokenizer_of(unk_token="<unk>")
    return transformers.Kosmos2ForConditionalGeneration(config), transformers.Kosmos2Processor(images, tokenizer)


def idefics():
    config = transformers.IdeficsConfig(
        vocab_size=400, hidden_size=36, intermediate_size=58, num_attention_heads=6, num_hidden_layers=2,
        additional_vocab_size=3, use_resampler=True, eos_token_id=END, pad_token_id=PAD, bos_token_id=BOS,
        vision_config=dict(embed_dim=30, image_size=21, patch_size=7, num_hidden_layers=2, num_attention_heads=5,
                           intermediate_size=44),
        perceiver_config=dict(resampler_n_latents=5, resampler_depth=2, resampler_n_heads=3, resampler_head_dim=7),
    )  # fmt: skip
    images = IdeficsImageProcessorPil(image_size=21)
    processor = transformers.IdeficsProcessor(images, tokenizer_of("<fake_token_around_image>"), image_size=21)
    return transformers.IdeficsForVisionText2Text(config), processor


class FuyuImageProcessor(FuyuImageProcessorPil):
    """Theirs cuts arrays of numpy into patches and is given tensors."""

    def patchify_image(self, image, patch_size=None):
        return torch.from_numpy(super().patchify_image(np.asarray(image), patch_size))


class Underscored(transformers.PreTrainedTokenizerFast):
    """Fuyu's own puts an underscore before placeholders, which its processor takes away again."""

    def __call__(self, text, **options):
        return super().__call__(f"_{text}" if text.startswith("|SPEAKER|") else text, **options)


def fuyu():
    text = dict(TEXT, num_attention_heads=6, partial_rotary_factor=0.7)
    text.pop("num_key_value_heads")
    config = transformers.FuyuConfig(
        text_config=transformers.PersimmonConfig(**text), patch_size=5, image_token_id=IMAGE, vocab_size=400,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=BOS,
    )  # fmt: skip
    images = FuyuImageProcessor(size={"height": 25, "width": 40}, patch_size={"height": 5, "width": 5})
    tokenizer = tokenizer_of("|NEWLINE|", "<s>", "<0x04>", image="|SPEAKER|")
    config.image_token_id = tokenizer.convert_tokens_to_ids("|SPEAKER|")
    tokenizer.__class__ = Underscored
    processor = transformers.FuyuProcessor(images, tokenizer)
    return transformers.FuyuForCausalLM(config), processor


BUILT = {
    "fuyu": fuyu,
    "instructblip": instructblip,
    "kosmos2": kosmos2,
    "idefics": idefics,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "onevision": onevision,
    "internvl": internvl,
    "mistral3": mistral3,
    "idefics2": idefics2,
    "idefics2 in quarters": lambda: idefics2(True),
    "idefics3": lambda: tiled("Idefics3", Idefics3ImageProcessorPil),
    "smolvlm": lambda: tiled("SmolVLM", SmolVLMImageProcessorPil),
    "blip2": blip2,
}
# Without a chat template: what their processor is given as text, of the text of the user.
PROMPTS = {"paligemma": "<image>{}", **dict.fromkeys(["blip2", "instructblip", "kosmos2", "idefics", "fuyu"], "{}")}
SIZES = dict.fromkeys(["paligemma", "blip2", "instructblip", "kosmos2", "onevision", "fuyu"], [(31, 60)])

# Those whose exports their own processor reads without the package for videos.
READ_BACK = ("paligemma", "gemma3", "idefics2", "idefics2 in quarters", "idefics3", "idefics")


@pytest.fixture
def pictures(tmp_path):
    def made(sizes):
        random, paths = np.random.default_rng(0), []
        for number, size in enumerate(sizes):
            paths.append(str(tmp_path / f"{number}.png"))
            Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(paths[-1])
        return paths

    return made


def drawn(reference, place):
    """The model in a directory, its weights at random and so large that replies depend on the images."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            scale = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float(scale))
    reference.generation_config.eos_token_id = None
    reference.eval().save_pretrained(place)
    return reference


def same_media(mine, theirs):
    """Entries that are no padding, in order."""
    assert list(mine) == list(theirs)
    for port, media in mine.items():
        wanted = theirs[port]
        own = np.asarray(media.values)[np.asarray(media.segment_ids) > 0]
        np.testing.assert_allclose(own, np.asarray(wanted.values)[np.asarray(wanted.segment_ids) > 0], atol=1e-5)
        if wanted.text is not None:
            there = np.asarray(media.text.segment_ids) > 0
            np.testing.assert_array_equal(np.asarray(media.text.tokens)[there], np.ravel(wanted.text.tokens))
        if wanted.grid is not None:
            own, theirs = media.grid[0][: len(wanted.grid[0])], np.asarray(wanted.grid[0])
            # Arrays of patches that are given without their rows and columns (Fuyu) are one line of them.
            flat = theirs[:, 1].max() == 1
            np.testing.assert_array_equal(own.prod(axis=1) if flat else own, theirs.prod(axis=1) if flat else theirs)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", BUILT)
def test_files_are_theirs(tmp_path, pictures, family, whole):
    reference, processor = BUILT[family]()
    drawn(reference, tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    paths = pictures(SIZES.get(family, [(31, 60), (55, 23)]))
    content = [{"type": "image", "path": path} for path in paths] + [{"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": content}]

    prompt = PROMPTS.get(family, "").format("what?") or processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
    )
    images = [Image.open(path) for path in paths]
    if family == "idefics":
        theirs = processor(text=[[*images, "what?"]], return_tensors="pt")
    else:
        options = {"return_legacy_image_output": False} if family == "fuyu" else {}
        theirs = processor(text=prompt, images=images, return_tensors="pt", **options)
    theirs.pop("labels", None)
    model = mmjax.from_pretrained(tmp_path / "model")
    sample = model.processor.sample(parse_record({"messages": messages}, "chat"), add_generation_prompt=True)
    # Under an image of KOSMOS-2 they have ids that do not matter.
    text = sample.media_index < 0 if family == "kosmos2" else np.ones(len(sample), bool)
    assert len(sample) == theirs["input_ids"].shape[1]
    assert sample.tokens[text].tolist() == theirs["input_ids"][0].numpy()[text].tolist()
    given = {name: value.numpy() if hasattr(value, "numpy") else value for name, value in theirs.items()}
    mine, wanted = collate([sample], model.processor.plan), model.batch(**given)
    same_media(mine.media, wanted.media)
    if family == "idefics":
        seen = np.asarray(mine.texts["text"].media_attention)[:, : len(sample), : len(images)]
        np.testing.assert_array_equal(seen, wanted.texts["text"].media_attention)
    if whole:
        with torch.no_grad():
            tokens = reference.generate(**theirs, max_new_tokens=5, do_sample=False, pad_token_id=PAD)[0]
        reply = model.chat(messages, max_new_tokens=5, eos_token_id=())
        assert str(reply) == processor.tokenizer.decode(tokens[-5:], skip_special_tokens=True)
        model.save_pretrained(tmp_path / "own", format="mmjax")
        model.save_pretrained(tmp_path / "out")
        for place in ("own", "out"):
            again = mmjax.from_pretrained(tmp_path / place).processor
            back = again.sample(parse_record({"messages": messages}, "chat"), add_generation_prompt=True)
            assert back.tokens.tolist() == sample.tokens.tolist()
            for mine, before in zip(back.media["image"], sample.media["image"], strict=True):
                np.testing.assert_array_equal(mine, before)
        if family in READ_BACK:
            back = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
            if family == "idefics":
                found = back(text=[[*images, "what?"]], return_tensors="pt")
            else:
                found = back(text=prompt, images=images, return_tensors="pt")
            assert found["input_ids"].tolist() == theirs["input_ids"].tolist()
            torch.testing.assert_close(found["pixel_values"], theirs["pixel_values"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["idefics3", "instructblip"])
def test_a_file_of_records(tmp_path, pictures, family, capsys):
    """`mmjax generate` answers rows of several shapes as chat answers each alone, and names the row that is wrong."""
    reference, processor = BUILT[family]()
    drawn(reference, tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    paths = [*pictures([(31, 60), (55, 23)]), str(tmp_path / "gone.png")]
    said = [{"type": "text", "text": "what?"}]
    rows = [[{"role": "user", "content": [{"type": "image", "path": path}, *said]}] for path in paths]
    rows.append([{"role": "user", "content": said}])
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    files = ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    cli.main(["generate", str(tmp_path / "model"), *files, "--max-new-tokens", "4"])
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model = mmjax.from_pretrained(tmp_path / "model")
    for index in (0, 1, 3):
        assert found[index]["text"] == str(model.chat(rows[index], max_new_tokens=4))
    assert "line 3: image 0" in found[2]["error"] and "gone.png: no such image file" in found[2]["error"]
