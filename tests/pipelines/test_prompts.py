"""Prompts to token ids against transformers' CLIPTokenizer, and what is said of those that do not fit."""

import json
import shutil
import warnings

import numpy as np
import pytest
import transformers

from mmjax.data.tokenizer import load_tokenizer
from mmjax.pipelines.directory import read_tokenizer
from mmjax.pipelines.prompts import PromptReader

PROMPTS = ["a red cat, 1", "  A  DOG", "", "cat's do.g é 12"]


@pytest.fixture(scope="module")
def readers(theirs):
    saved, used = theirs.place / "saved_words", theirs.place / "used_words"
    theirs.tokenizer.save_pretrained(saved)
    theirs.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=9)
    theirs.tokenizer.save_pretrained(used)
    assert json.loads((used / "tokenizer.json").read_text())["padding"], "what their last call was is saved"
    found = [load_tokenizer(str(place)) for place in (saved, used, theirs.words)]
    assert found[0].pad_id == theirs.tokenizer.pad_token_id
    return [PromptReader(tokenizer, 9, found[0].pad_id) for tokenizer in found]


def test_tokens_equal_theirs(theirs, readers):
    wanted = np.asarray(theirs.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=9)["input_ids"])
    for reader in readers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert (reader.tokens(PROMPTS) == wanted).all()


END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("config", "token_map", "decoder"),
    [
        (END, "b", False),  # as Stable Diffusion 2 has it, whose map says "!"
        ("b", END, False),
        (END, "b", True),
        ("b", None, False),
        (None, "b", False),
        (None, None, False),
    ],
)
def test_what_fills_a_prompt_up_is_what_the_files_say(config, token_map, decoder, theirs, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(theirs.words / name, tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 9, "pad_token": config}
    if decoder:
        said["added_tokens_decoder"] = {ids[token]: {"content": token, "special": True} for token in (END, "b")}
    marks = {"bos_token": "<|startoftext|>", "eos_token": END, "pad_token": token_map}
    for name, content in (("tokenizer_config.json", said), ("special_tokens_map.json", marks)):
        content = {key: value for key, value in content.items() if value is not None}
        (tmp_path / name).write_text(json.dumps(content))
    wanted = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer, pad = read_tokenizer(tmp_path)
    texts = ["a red cat, 1", "dog", ""]
    tokens = np.asarray(wanted(texts, padding="max_length", max_length=9)["input_ids"])
    assert (PromptReader(tokenizer, 9, pad).tokens(texts) == tokens).all() and tokens[2, -1] == wanted.pad_token_id


def test_what_is_cut_off_is_shown(readers):
    with pytest.warns(UserWarning, match="read are 7; cut off is '.*dog") as seen:
        readers[0].tokens(["cat cat cat cat cat cat cat a dog"])
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        readers[0].tokens(["cat cat cat cat cat cat cat"])


def test_pairs_put_what_to_keep_away_from_first(readers):
    reader = readers[0]
    cat, dog, empty = (reader.tokens([text]) for text in ("cat", "dog", ""))
    both, rows = reader.pair(["cat", "dog"], None, None, None, True)
    assert rows == 2 and (both == np.concatenate([empty, empty, cat, dog])).all() and both.dtype == np.int32
    both, rows = reader.pair("cat", None, ["dog"], None, True)
    assert rows == 1 and (both == np.concatenate([dog, cat])).all()
    one, rows = reader.pair(None, [[3, 4], [5, 6]], "dog", None, False)
    assert rows == 2 and (one == [[3, 4] + [reader.pad_id] * 7, [5, 6] + [reader.pad_id] * 7]).all()


def test_bad_requests_are_named(readers):
    reader = readers[0]
    for given in ((None, None), ("cat", [[1]])):
        with pytest.raises(ValueError, match="prompt or prompt_ids, one of them"):
            reader.pair(*given, None, None, True)
    with pytest.raises(ValueError, match="negative_prompt or negative_prompt_ids, not both"):
        reader.pair("cat", None, "dog", [[1]], True)
    with pytest.raises(ValueError, match=r"prompt_ids are int64 \(1, 10\); wanted whole numbers \[B, T\], T up to 9"):
        reader.pair(None, np.zeros((1, 10), np.int64), None, None, True)
    with pytest.raises(ValueError, match=r"negative_prompt_ids are float64 \(1, 2\)"):
        reader.pair("cat", None, None, np.zeros((1, 2)), True)
