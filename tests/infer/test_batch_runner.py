"""The batch runner: order, buckets, bad records, resuming, and answers equal to those of one record alone."""

import io
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
from mmjax.infer.batch import lines_done, run_batch, run_file
from mmjax.infer.generate import GenerateOptions, Programs, generate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

SPECIAL = ["<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|system|>"]
WORDS = ["[UNK]", *"what is this a blue frog and that the colour tell me more again of cat dog red".split()]
WORDS += [f"word{i}" for i in range(70)]  # so that a random model seldom says a control token
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIDE = 8
VOCAB = len(SPECIAL) + len(WORDS)


def random_params(model, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(np.float32) * 0.3), model.param_shapes()
    )


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A tiny model that sees, its parameters and its processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vision = ViTConfig(image_size=SIDE, patch_size=4, width=12, num_layers=2, num_heads=2, mlp_width=20)
    backbone = DecoderConfig(VOCAB, 24, 2, 3, 1, 8, 40, max_positions=80)
    config = MultimodalLMConfig(
        backbone, {"image": vision}, {"image": LinearProjectorConfig(vision.feature_width, 24)}, {"image": 2}
    )
    model = MultimodalLM(config)

    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    processor = Processor(
        tokenizer=load_tokenizer(str(path)),
        images={"image": ImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)},
        template=TEMPLATE,
        placeholders={"image": "<image>"},
        media_tokens={"image": 2},
        count=model.num_tokens,
        lengths=(16, 32, 64, 80),
        items={"image": (0, 1, 2)},
    )
    return model, random_params(model), processor


@pytest.fixture(scope="module")
def programs(system):
    return Programs(system[0])


OPTIONS = GenerateOptions(max_new_tokens=7, stop_ids=(1,))


def png(seed, side=11):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    for i in range(3):
        (path / f"{i}.png").write_bytes(png(i))
    (path / "half.png").write_bytes(png(0)[:150])
    return path


def ask(text, *images, answer=None, **extra):
    parts = [{"type": "image", "path": image} for image in images] + [{"type": "text", "text": text}]
    messages = [{"role": "user", "content": parts}]
    if answer:
        messages.append({"role": "assistant", "content": answer})
    return {**extra, "messages": messages}


def many(count=11):
    """Records of several lengths and numbers of images, with four bad ones among them."""
    records = [
        ask("what is this", "0.png", id="first"),
        ask("what is this"),
        ask("is this a frog", "missing.png", id=7),
        ask("tell me more of the cat and the dog and the frog and more and more and more", "1.png"),
        ask("a blue frog and a red cat", "1.png", "2.png", answer="blue cat"),
        ask("is that a cat", "half.png"),
        {"messages": []},
        ask("what is this", "1.png"),
        ask(" ".join(["more"] * 90)),
        ask("what is this " * 6),
        ask("what is this", "2.png"),
    ]
    return records[:count]


BAD = {2: "missing.png", 5: "half.png", 6: "messages", 8: "93 tokens"}


def alone(system, record, folder, programs):
    """The answer to one record by itself."""
    model, params, processor = system
    record = {**record, "messages": [m for m in record["messages"] if m["role"] != "assistant"]}
    sample = processor.sample(parse_record(record, "alone", str(folder)), add_generation_prompt=True)
    batch = collate([sample], processor.plan)
    out = generate(model, params, batch, OPTIONS, programs)
    ids = out.tokens[0, : out.lengths[0]].tolist()
    return processor.tokenizer.decode(ids[:-1] if ids[-1] == 1 else ids), len(ids)


def run(system, records, folder, batch_size=2, options=OPTIONS, **kwargs):
    model, params, processor = system
    lines = []
    report = run_batch(
        model,
        params,
        processor,
        records,
        options,
        processor.plan,
        batch_size,
        lines.append,
        image_root=str(folder),
        **kwargs,
    )
    return lines, report


@pytest.fixture(scope="module")
def answered(system, folder):
    """Lines and report of one run over all records with programs of its own."""
    return run(system, many(), folder)


def test_every_record_gets_one_line_in_order_and_bad_ones_say_why(answered):
    lines, report = answered
    assert [line["index"] for line in lines] == list(range(11))
    for index, word in BAD.items():
        assert set(lines[index]) - {"id"} == {"index", "error"} and word in lines[index]["error"]
    assert all("text" in line for line in lines if line["index"] not in BAD)
    assert lines[0]["id"] == "first" and lines[2]["id"] == 7 and "id" not in lines[1]
    assert lines[4]["reference"] == "blue cat"
    assert (report.records, report.errors, report.skipped) == (11, 4, 0)


@pytest.mark.slow
def test_answers_are_those_of_each_record_alone(system, folder, answered, programs):
    for line, record in zip(answered[0], many(), strict=True):
        if line["index"] not in BAD:
            assert (line["text"], line["num_tokens"]) == alone(system, record, folder, programs)


def test_programs_compile_once_a_bucket_and_a_second_run_compiles_nothing(system, folder, answered, programs):
    _, report = answered
    assert len(report.buckets) == 5 and report.batches == 6
    assert report.compilations and all(count <= 5 for count in report.compilations.values())
    assert "6 batches of 5 buckets; compiled: decode" in str(report) and "4 with an error" in str(report)
    run(system, many(), folder, programs=programs)
    _, again = run(system, many()[::-1], folder, programs=programs)
    assert again.compilations == {} and "compiled: nothing" in str(again)


@pytest.mark.slow
def test_draws_do_not_depend_on_the_batch_size(system, folder, programs):
    options = GenerateOptions(max_new_tokens=7, do_sample=True, temperature=1.5, top_p=0.95, seed=4)
    records = [ask("what is this", f"{i % 3}.png") for i in range(5)]
    expected, _ = run(system, records, folder, 2, options, programs=programs)
    assert run(system, records, folder, 5, options, programs=programs)[0] == expected
    assert len({line["text"] for line in expected}) == 5  # the same question twice is drawn twice


def test_a_rare_bucket_does_not_hold_up_the_others_for_ever(system, folder, programs):
    records = [ask("what is this " * 6)] + [ask("what is this")] * 40
    written = []
    model, params, processor = system
    seen = []
    run_batch(
        model,
        params,
        processor,
        records,
        GenerateOptions(max_new_tokens=1),
        processor.plan,
        2,
        written.append,
        programs,
        progress=lambda done, total, errors: seen.append((done, total, errors)),
    )
    assert [line["index"] for line in written] == list(range(41))
    assert seen == [(i, 41, 0) for i in range(1, 42)]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_file_run_resumes_behind_its_last_whole_line(system, folder, answered, programs, capsys):
    model, params, processor = system
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    write_jsonl(source, many())
    source.write_text(source.read_text() + "{not json}\n")
    first = run_file(model, params, processor, source, output, OPTIONS, processor.plan, 2, programs)
    whole = output.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line.get("text") for line in lines[:11]] == [line.get("text") for line in answered[0]]
    assert all(("error" in line) == (line["index"] in BAD) for line in lines[:11])
    assert "in.jsonl line 12" in lines[11]["error"] and first.errors == 5
    told = capsys.readouterr().err
    assert "generated 12/12, 5 errors" in told

    kept = whole.splitlines(keepends=True)
    output.write_text("".join(kept[:4]) + kept[4][:9])  # cut off in the middle of a line
    second = run_file(model, params, processor, source, output, OPTIONS, processor.plan, 2, programs)
    assert output.read_text() == whole and (second.skipped, second.records) == (4, 8)
    assert "4 done before" in str(second)
    third = run_file(model, params, processor, source, output, OPTIONS, processor.plan, 2, programs)
    assert output.read_text() == whole and third.records == 0 and third.compilations == {}


def test_what_was_written_before_an_interrupt_stays(system, folder, programs):
    model, params, processor = system
    source, output = folder / "some.jsonl", folder / "interrupted.jsonl"
    write_jsonl(source, [ask("what is this")] * 4)

    def interrupt(done, total, errors):
        if done == 3:
            raise KeyboardInterrupt

    lines = []

    def write(line):
        lines.append(line)
        output.write_text("".join(json.dumps(line) + "\n" for line in lines))

    with pytest.raises(KeyboardInterrupt):
        run_batch(
            model,
            params,
            processor,
            [ask("what is this")] * 4,
            OPTIONS,
            processor.plan,
            1,
            write,
            programs,
            interrupt,
        )
    report = run_file(model, params, processor, source, output, OPTIONS, processor.plan, 1, programs)
    assert (report.skipped, report.records) == (3, 1) and len(output.read_text().splitlines()) == 4


def test_an_output_file_of_another_run_is_refused_and_left_alone(tmp_path):
    output = tmp_path / "out.jsonl"
    assert lines_done(output, 3) == 0
    for text in ('{"index": 1, "text": "a"}\n', "hello\n", "[1]\n"):
        output.write_text(text)
        with pytest.raises(ValueError, match="out.jsonl line 1"):
            lines_done(output, 3)
        assert output.read_text() == text
    output.write_text('{"index": 0}\n{"index": 1}\n')
    with pytest.raises(ValueError, match="line 2 .* of 1"):
        lines_done(output, 1)
    assert lines_done(output, 2) == 2


def test_a_batch_size_of_zero_and_a_missing_input_are_refused(system, tmp_path):
    model, params, processor = system
    with pytest.raises(ValueError, match="batch_size"):
        run(system, many(1), tmp_path, batch_size=0)
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        run_file(model, params, processor, tmp_path / "nowhere.jsonl", tmp_path / "o", OPTIONS, processor.plan)
    assert not (tmp_path / "o").exists()
