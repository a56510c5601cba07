"""Prompts to token ids against transformers' CLIPTokenizer, and what is said of those that do not fit."""

import json
import warnings

import numpy as np
import pytest

from mmjax.data.tokenizer import load_tokenizer
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
