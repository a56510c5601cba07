"""VisCPM's instructions: two languages from two files, mixed by the weights of its stage whatever the files' sizes."""

import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mmjax.config import ConfigError, from_dict
from mmjax.configuration import load_config, to_plain
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.recipes.assemble import TrainConfig, make_processor
from mmjax.recipes.train import data_of, make_stage_pipeline, stage_of

ANSWERS = {"en": "a red cat", "zh": "一只红猫"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twelve English records and three Chinese ones, about one picture."""
    place = tmp_path_factory.mktemp("languages")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(place / "cat.png")
    for language, count in (("en", 12), ("zh", 3)):
        records = [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "?"}]},
                    {"role": "assistant", "content": f"{ANSWERS[language]} {number}"},
                ]
            }
            for number in range(count)
        ]
        (place / f"{language}.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return tuple(str(place / f"{language}.jsonl") for language in ANSWERS)


def languages(files, weights, batches):
    """Of each row in order: which language its answer has, and its number."""
    plain = to_plain(load_config("viscpm:tiny"))
    plain["stages"]["instruct"]["data"] |= {"path": files, "weights": weights}
    config = from_dict(TrainConfig, plain)
    stage, processor = stage_of("instruct", config.stages["instruct"]), make_processor(config)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    pipeline, found = make_stage_pipeline(stage, data_of(stage), processor, mesh), []
    for batch in itertools.islice(iter(pipeline), batches):
        for tokens, targets in zip(batch.text.tokens, batch.text.loss_weights, strict=True):
            answer = processor.tokenizer.decode(tokens[np.asarray(targets) > 0].tolist())
            (language,) = [name for name, words in ANSWERS.items() if words in answer]
            found.append((language, answer))
    return found


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.2, 0.8)])
def test_rows_are_in_the_ratio_of_the_weights(files, weights):
    found = languages(files, weights, 20)
    assert len(found) == 80
    share = weights[0] / sum(weights)
    for stretch in (found[:20], found[30:50], found):
        english = sum(language == "en" for language, _ in stretch)
        assert abs(english - share * len(stretch)) <= 2
    # Of the smaller file each record comes round as often as its others.
    chinese = [answer for language, answer in found if language == "zh"]
    counts = [chinese.count(answer) for answer in set(chinese)]
    assert len(counts) == 3 and max(counts) - min(counts) <= 1


def test_without_weights_records_count_alike(files):
    found = languages(files, (), 15)
    assert sum(language == "en" for language, _ in found) == 48  # twelve of fifteen, four epochs of them
    with pytest.raises(ConfigError, match="1 weights for 2 paths"):
        languages(files, (1.0,), 1)
