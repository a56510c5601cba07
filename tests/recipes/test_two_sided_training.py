"""BLIP-2 with T5 from files to a trained model that answers; its loss and T5's equal to transformers'."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import mmjax
from mmjax import cli
from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.collate import collate
from mmjax.data.items import MediaSize
from mmjax.data.token_plan import TokenPlan
from mmjax.train.losses import next_token_loss

V, IMAGE, QUERIES = 83, 80, 3
T5 = transformers.T5Config(vocab_size=V, d_model=36, d_ff=58, d_kv=10, num_layers=2, num_heads=3,
                           relative_attention_num_buckets=8, relative_attention_max_distance=11,
                           feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                           decoder_start_token_id=0)  # fmt: skip
VISION = dict(hidden_size=28, intermediate_size=39, num_hidden_layers=1, num_attention_heads=4, image_size=15,
              patch_size=5)  # fmt: skip
QFORMER = dict(vocab_size=41, hidden_size=25, num_hidden_layers=2, num_attention_heads=5, intermediate_size=33,
               max_position_embeddings=11)  # fmt: skip
# What is read and what is written; the answers are of different lengths.
ROWS = (([5, 6, 7], [11, 12, 1]), ([8], [13, 14, 15, 16, 1]), ([9, 10, 3, 4, 2], [1]))


def references():
    options = dict(vision_config=VISION, qformer_config=QFORMER, text_config=T5)
    config = transformers.Blip2Config(**options, num_query_tokens=QUERIES, image_token_index=IMAGE)
    blip2 = transformers.Blip2ForConditionalGeneration(config)
    return {"t5": transformers.T5ForConditionalGeneration(T5), "blip2": blip2}


@pytest.mark.parametrize("name", ["t5", "blip2"])
def test_loss_is_that_of_transformers_labels(tmp_path, name):
    torch.manual_seed(0)
    reference = references()[name].eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    reference.save_pretrained(tmp_path)
    model = mmjax.from_pretrained(tmp_path)
    plan = TokenPlan(model.config.num_tokens, model.config.media_tokens, lengths=(8, 16), **model.config.plan_options)
    pixels = np.random.default_rng(0).normal(size=(3, 15, 15, 3)).astype(np.float32)
    image, samples = [MediaSpan("image", 0)] if name == "blip2" else [], []
    for row, (read, written) in enumerate(ROWS):
        spans = (*image, TextSpan(tuple(read), (False,) * len(read)), TextSpan(tuple(written), (True,) * len(written)))
        sample = plan.plan_sample(spans, {"image": [MediaSize()]} if image else None, f"row {row}")
        samples.append(sample.with_media({"image": [pixels[row]]} if image else {}))
    batch = collate(samples, plan)

    places, most = QUERIES * len(image), max(len(read) for read, _ in ROWS)
    ids = np.zeros((3, places + most), np.int64)
    mask, labels = np.zeros_like(ids), np.full((3, 5), -100, np.int64)
    for row, (read, written) in enumerate(ROWS):
        end = places + len(read)
        ids[row, :end], mask[row, :end], labels[row, : len(written)] = [IMAGE] * places + read, 1, written
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if image:
        inputs["pixel_values"] = pixels.transpose(0, 3, 1, 2)
    with torch.no_grad():
        wanted = reference(**{key: torch.as_tensor(value) for key, value in inputs.items()}).loss.item()
    total, aux = jax.jit(lambda params: next_token_loss(model.module, params, batch))(model.params)
    assert int(aux["targets"]) == sum(len(written) for _, written in ROWS)
    assert float(total / aux["weight"]) == pytest.approx(wanted, abs=1e-5)


def write_data(folder):
    """Five images of one colour: captions, and chats of two questions."""
    rng, captions, chats = np.random.default_rng(0), [], []
    for index in range(5):
        pixels = np.broadcast_to(rng.integers(0, 255, 3).astype(np.uint8), (20 + index, 31, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index}.png")
        parts = [{"type": "image", "path": f"{index}.png"}, {"type": "text", "text": "Which?"}]
        answer = {"role": "assistant", "content": f"colour {index}"}
        messages = [{"role": "user", "content": parts}, answer]
        captions.append(json.dumps({"id": index, "messages": messages}))
        messages += [{"role": "user", "content": "Again?"}, answer]
        chats.append(json.dumps({"id": index, "messages": messages}))
    (folder / "captions.jsonl").write_text("\n".join(captions))
    (folder / "chats.jsonl").write_text("\n".join(chats))


def test_from_files_to_answers(tmp_path, capsys):
    write_data(tmp_path)
    command = [
        "train",
        "--config=blip_2:tiny_t5",
        f"--workdir={tmp_path / 'run'}",
        f"--config.stages.generate.data.path={tmp_path / 'chats.jsonl'}",
        "--config.stages.generate.data.mode=chat",
        "--config.stages.generate.steps=2",
        "--config.stages.generate.log_every=1",
        "--config.stages.generate.panel_every=2",
    ]
    assert cli.main(command) == 0
    folder = tmp_path / "run" / "generate"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(np.isfinite(line["loss"]) and line["tokens_per_s"] > 0 for line in lines)
    assert all(line["compilations"] == 1 for line in lines[-1:]) and 0 < lines[-1]["mfu"] < 1
    assert Image.open(folder / "panels" / "2.png").size[0] > 200
    hashes = json.loads((folder / "certificate.json").read_text())["frozen"]
    assert all(group["before"] == group["after"] for group in hashes.values()) and any("backbone" in k for k in hashes)

    model = str(tmp_path / "run" / "model")
    output = tmp_path / "answers.jsonl"
    told = ["--max-new-tokens", "4", "--batch-size", "5"]
    assert cli.main(["generate", model, "-i", str(tmp_path / "chats.jsonl"), "-o", str(output), *told]) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["index"] for answer in answers] == list(range(5))
    assert all(answer["reference"].startswith("colour") and 1 <= answer["num_tokens"] <= 4 for answer in answers)
    assert cli.main(["data", model, str(tmp_path / "chats.jsonl"), "--record", "1"]) == 0
    text = capsys.readouterr().out
    (loss,) = [line for line in text.splitlines() if " LOSS " in line]
    assert "colour 1" in loss and "</s>" in loss
