"""The tokenizer that a GGUF file carries in its metadata: byte-level BPE or sentencepiece BPE from its tables."""

from collections.abc import Mapping

from mmjax.data.tokenizer import CONTROL, SPACE, UNKNOWN, USER_DEFINED, HuggingFaceCore, Tokenizer

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + _WORDS % r"\p{N}{1,3}"
_QWEN2 = _CONTRACTION + _WORDS % r"\p{N}"
# tokenizer.ggml.pre -> how text is cut before the merges: "gpt2" (ByteLevel's own expression), "digits"
# (every digit alone, then the same), or an expression.
_PRE = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"), "gpt2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), "digits"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "pixtral", "falcon3", "lfm2"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
}


def tokenizer_from_gguf(metadata: Mapping) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata (key -> value, arrays as lists).

    Follows the keys of the GGUF specification under `tokenizer.`: `ggml.model` "gpt2" (byte-level BPE from
    tokens and merges, cut as `ggml.pre` says) or "llama" (sentencepiece BPE; merges recovered from the
    scores). Raises ValueError naming the key that is missing or holds something unknown.
    """
    model = _value(metadata, "model")
    tokens = _value(metadata, "tokens")
    types = _value(metadata, "token_type", [1] * len(tokens))
    if len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    pre = _value(metadata, "pre", "default")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    named_ids = {name: _value(metadata, f"{key}_token_id", None) for name, key in names.items()}
    for key, index in named_ids.items():
        if index is not None and not 0 <= index < len(tokens):
            raise ValueError(f"GGUF metadata: the id of {key} is {index}, but there are {len(tokens)} tokens")
    named = {key: tokens[index] for key, index in named_ids.items() if index is not None}
    typed = list(zip(tokens, types, strict=True))
    special = {token for token, kind in typed if kind in (UNKNOWN, CONTROL)} | set(named.values())
    user = {token for token, kind in typed if kind == USER_DEFINED and SPACE not in token}
    if model == "gpt2":
        raw = _byte_level(tokens, _value(metadata, "merges"), pre)
        add_bos = _PRE[pre] == _LLAMA3
    elif model == "llama":
        raw = _sentencepiece(metadata, tokens, special, named.get("unk_token"))
        add_bos = True
    else:
        raise ValueError(f'tokenizer.ggml.model is "{model}"; this reader knows "gpt2" and "llama"')
    _add_tokens(raw, tokens, special, user)
    add_bos = bool(_value(metadata, "add_bos_token", add_bos)) and "bos_token" in named
    if add_bos:
        from tokenizers.processors import TemplateProcessing

        bos = named["bos_token"]
        raw.post_processor = TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, named_ids["bos_token"])]
        )
    return Tokenizer(HuggingFaceCore(raw), named, add_bos, metadata.get("tokenizer.chat_template"), {})


_REQUIRED = object()


def _value(metadata: Mapping, key: str, default=_REQUIRED):
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if value is _REQUIRED:
        raise ValueError(f"GGUF metadata has no tokenizer.ggml.{key}, so no tokenizer can be built from it")
    return value


def _byte_level(tokens: list[str], merges: list[str], pre: str):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if pre not in _PRE:
        raise ValueError(f'tokenizer.ggml.pre is "{pre}"; this reader knows {", ".join(sorted(_PRE))}')
    rule = _PRE[pre]
    vocab: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocab.setdefault(token, index)
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise ValueError(f"tokenizer.ggml.merges: {' '.join(pair)!r} needs tokens that are not there")
    raw = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=rule == _LLAMA3))
    cut = []
    if rule == "digits":
        cut = [pre_tokenizers.Digits(individual_digits=True)]
    elif rule != "gpt2":
        cut = [pre_tokenizers.Split(Regex(rule), behavior="isolated")]
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in ("gpt2", "digits"))]
    )
    if rule == _QWEN2:
        raw.normalizer = normalizers.NFC()
    raw.decoder = decoders.ByteLevel()
    return raw


def _sentencepiece(metadata: Mapping, tokens: list[str], special: set[str], unknown: str | None):
    """Llama's sentencepiece BPE: the pair whose union has the best score is merged first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if str(metadata.get("general.architecture", "")).startswith("gemma"):
        # Runs of spaces are stored as spaces, and the order of the tokens is the order of the merges.
        tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
        scores = [-index for index in range(len(tokens))]
    else:
        scores = _value(metadata, "scores")
    if len(scores) != len(tokens):
        raise ValueError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    vocab: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocab.setdefault(token, index)
    parts = vocab.keys() - special
    merges = []
    for token in parts:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in parts and right in parts:
                index = vocab[token]
                merges.append(((-scores[index], -len(left), -len(right), index), (left, right)))
    merges.sort()
    pairs = [pair for _, pair in merges]
    raw = Tokenizer(
        models.BPE(vocab=vocab, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(_value(metadata, "add_space_prefix", True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix else "never", split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return raw


def _add_tokens(raw, tokens: list[str], special: set[str], user: set[str]) -> None:
    from tokenizers import AddedToken

    raw.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in tokens if t in special])
    raw.add_tokens([AddedToken(t, normalized=False) for t in tokens if t in user and t not in special])
