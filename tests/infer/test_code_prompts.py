"""Pictures in a chat with a model that reads them as codes: filled in before the prompt is."""

import jax
import numpy as np
import pytest

from mmjax.api import Model
from mmjax.config import from_dict
from mmjax.configuration import load_config, to_plain
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.infer.generate import GenerateOptions, Programs, check_request, generate
from mmjax.model import MultimodalLM
from mmjax.recipes.assemble import TrainConfig, make_processor


def said(pixels, *more):
    content = [{"type": "image", "image": pixels}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": content}, *more]


@pytest.mark.parametrize("name", ["chameleon", pytest.param("janus", marks=pytest.mark.slow)])
def test_a_picture_is_read_as_its_codes(name):
    config = from_dict(TrainConfig, to_plain(load_config(f"{name}:tiny")))
    processor, random = make_processor(config), np.random.default_rng(0)
    module = MultimodalLM(config.model)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), module.param_shapes())
    model = Model(config.model, params, processor)
    pictures = random.integers(0, 256, (2, 9, 9, 3), np.uint8)
    # Janus reads codes where an assistant showed something.
    before = {"role": "assistant", "content": [{"type": "image", "image": pictures[1]}]}
    more = (before, {"role": "user", "content": "And?"}) if name == "janus" else ()
    talks = [said(picture, *more) for picture in pictures]
    batch = collate([processor.sample(parse_record({"messages": talk}, "x"), True) for talk in talks], processor.plan)
    codes, text = config.model.codes, batch.text
    found = module.codes(params, "encode", batch.targets[codes.port]["media"][:, 0])
    tokens = text.tokens.copy()
    assert (tokens == codes.blank).sum(axis=1).tolist() == [16, 16]
    tokens[tokens == codes.blank] = codes.tokens()[np.asarray(found)].reshape(-1)
    options, programs = GenerateOptions(max_new_tokens=4), Programs(module)
    check_request(module, batch, options)
    known = batch.replace(texts={"text": text.replace(tokens=tokens)}, targets=None)
    wanted = generate(module, params, known, options, programs)
    np.testing.assert_array_equal(generate(module, params, batch, options, programs).tokens, wanted.tokens)
    # As a user would ask.
    reply = model.chat(talks[0], max_new_tokens=4, generation_mode="text", eos_token_id=())
    assert isinstance(reply, str) and reply.image_codes == ()
    if name == "janus":
        with pytest.raises(ValueError, match="outside the vocabulary"):
            generate(module, params, batch.replace(targets=None), options, programs)
