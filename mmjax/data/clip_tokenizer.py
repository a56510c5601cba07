"""CLIP's tokenizer from vocab.json and merges.txt, as older checkpoints hold it (Radford et al., 2021).

Lower case, white space joined; words, single digits and runs of other signs; byte pairs whose last piece of a word ends
in "</w>".
"""

import json
from pathlib import Path
from typing import Any

VOCABULARY, MERGES = "vocab.json", "merges.txt"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clip_tokenizer(directory: Path, bos: str, eos: str) -> Any:
    """The `tokenizers.Tokenizer` of a directory, which puts `bos` before a text and `eos` behind it.

    Raises:
        ValueError: files that cannot be read as such, or a vocabulary without the two.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        vocabulary = json.loads((directory / VOCABULARY).read_text(encoding="utf-8"))
        lines = (directory / MERGES).read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        model = models.BPE(vocabulary, merges, unk_token=eos, end_of_word_suffix="</w>")
    except Exception as error:  # the package raises bare Exception
        raise ValueError(f"{directory}: {VOCABULARY} and {MERGES} are no byte pairs: {error}") from error
    missing = [token for token in (bos, eos) if token not in vocabulary]
    if missing:
        raise ValueError(f"{directory}/{VOCABULARY} lacks {', '.join(missing)}")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([bos, eos])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("</w>", " "), decoders.ByteLevel()])
    ends = (eos, vocabulary[eos]), (bos, vocabulary[bos])
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return tokenizer
