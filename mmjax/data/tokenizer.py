"""One tokenizer over three kinds of file: `tokenizer.json`, a sentencepiece `.model`, a GGUF (`gguf_tokenizer`).

The rule that the rest of the library stands on: `Tokenizer.encode` reads ORDINARY text. A control token spelt
out in it is encoded as the characters it consists of, never as the control id, so no text of a user, of a
dataset or of a model can forge a turn, a placeholder or an end of sequence. Control ids come from `token_id`
only, and from the chat template's own text (`mmjax.data.chat_template`).

What counts as control: every added token flagged special, every named token (bos, eos, pad, ...), and every
other added token that is written as markup, that is, with a character which is no letter, digit or space
(`<think>`, `<image>`, `[IMG]`). Added words and runs of spaces stay ordinary vocabulary.
"""

import copy
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmjax.data.clip_tokenizer import MERGES, VOCABULARY, clip_tokenizer

_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model")
SPACE = "\u2581"  # how sentencepiece vocabularies write a space
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can hold and UTF-8 cannot
_BYTE_TOKEN = re.compile(
    "<0x[0-9A-F]{2}>"
)  # what byte fallback falls back on: no control, even if so flagged
# Types of pieces, the same numbers in sentencepiece and GGUF.
UNKNOWN, CONTROL, USER_DEFINED, _BYTE = 2, 3, 4, 6


def _is_markup(token: str) -> bool:
    return any(not (c.isalnum() or c.isspace() or c == SPACE) for c in token)


class Tokenizer:
    """Ids for text and text for ids, whatever the file was.

    Attributes:
        special_tokens: control token -> id (see the module docstring for what counts).
        strips: control token -> (left, right): whether it swallows the white space beside it (`AddedToken`).
        named_tokens: {"bos_token": "<s>", ...}, the strings a chat template may refer to.
        vocab_size: one more than the largest id.
        add_bos: whether plain text starts with BOS for this checkpoint; `encode` itself never adds it.
        chat_template: jinja source or None.
    """

    def __init__(
        self, core, named_tokens: Mapping[str, str], add_bos: bool, chat_template: str | None, config: dict
    ):
        self._core = core
        self._config = config
        self.named_tokens = dict(named_tokens)
        self.add_bos = add_bos
        self.chat_template = chat_template
        self.special_tokens: dict[str, int] = {token: row[0] for token, row in core.controls.items()}
        self.strips: dict[str, tuple[bool, bool]] = {token: row[1:] for token, row in core.controls.items()}
        self.vocab_size: int = core.vocab_size

    def encode(self, text: str, continued: bool = False) -> list[int]:
        """Ids of ordinary text; no BOS, no control ids. See `encode_with_offsets` for `continued`."""
        return self.encode_with_offsets(text, continued)[0]

    def encode_with_offsets(
        self, text: str, continued: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the characters [start, end) of `text` that it covers.

        continued: the text stands after something else (a control token, an image), so that a tokenizer which
        puts a space only before the first word of a string puts none here.
        """
        if not text:
            return [], []
        return self._core.encode(_SURROGATE.sub("\ufffd", text), continued)

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the checkpoint puts before and behind a text, by its post-processor if it has one."""
        return self._core.frame() if hasattr(self._core, "frame") else ((self.bos_id,) if self.add_bos else (), ())

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids` (any integers; negative ones and those past the vocabulary are left out).

        Ids that end inside a character give U+FFFD for the missing part, never an error, so a stream can be
        decoded as it grows.
        """
        return self._core.decode([int(i) for i in ids if 0 <= int(i) < self.vocab_size], skip_special)

    def token_id(self, token: str) -> int | None:
        """Id of one vocabulary entry, control tokens included; None if there is no such entry."""
        return self._core.token_id(token)

    def _named_id(self, name: str) -> int | None:
        token = self.named_tokens.get(name)
        return None if token is None else self.token_id(token)

    @property
    def bos_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        return self._named_id("pad_token")

    def with_tokens(self, tokens: Iterable[str]) -> "Tokenizer":
        """A copy in which each of `tokens` is a control token; those it lacks get ids from its end."""
        core = self._core.with_tokens(list(tokens))
        return Tokenizer(core, self.named_tokens, self.add_bos, self.chat_template, self._config)

    def with_controls(self, tokens: Iterable[str]) -> "Tokenizer":
        """A copy in which those of `tokens` that it has are control tokens for templates, whatever they look like."""
        found = copy.copy(self)
        known = {token: index for token in tokens if (index := self.token_id(token)) is not None}
        found.special_tokens = {**known, **self.special_tokens}
        found.strips = {**dict.fromkeys(known, (False, False)), **self.strips}
        return found

    def save(self, directory: str) -> None:
        """Write tokenizer.json or tokenizer.model, tokenizer_config.json and special_tokens_map.json.

        transformers' AutoTokenizer reads the directory and gives the same ids.
        """
        os.makedirs(directory, exist_ok=True)
        config = copy.deepcopy(self._config)
        config.update(self.named_tokens)
        config["add_bos_token"] = self.add_bos
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        config.update(self._core.save(directory, config))
        named = {key: token for key, token in self.named_tokens.items() if key in _NAMES}
        extra = [token for token in self.special_tokens if token not in named.values()]
        if extra:
            named["additional_special_tokens"] = extra
        for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", named)):
            with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=2)
                file.write("\n")


_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class HuggingFaceCore:
    """A `tokenizers.Tokenizer`, and one made from it for encoding, in which no control token can match."""

    def __init__(self, raw):
        self.raw = raw
        self.controls = {
            token.content: (index, token.lstrip, token.rstrip)
            for index, token in sorted(raw.get_added_tokens_decoder().items())
            if (token.special or _is_markup(token.content)) and not _BYTE_TOKEN.fullmatch(token.content)
        }
        self.vocab_size = max(raw.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        # A tokenizer that was saved after use keeps the padding of its last call, which would hide its frame.
        raw.no_padding()
        raw.no_truncation()
        spec = json.loads(raw.to_str())
        _hide_tokens(spec, self.controls)
        self._first = self._continued = type(raw).from_str(json.dumps(spec))
        if _stop_first_prefix(spec["pre_tokenizer"]):
            self._continued = type(raw).from_str(json.dumps(spec))

    def encode(self, text, continued):
        encoding = (self._continued if continued else self._first).encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def frame(self):
        plain, whole = (self.raw.encode("a", add_special_tokens=framed).ids for framed in (False, True))
        extra = len(whole) - len(plain)
        at = next((i for i in range(extra + 1) if whole[i : i + len(plain)] == plain), 0)
        return tuple(whole[:at]), tuple(whole[at + len(plain) :])

    def decode(self, ids, skip_special):
        return self.raw.decode(ids, skip_special_tokens=skip_special)

    def token_id(self, token):
        return self.raw.token_to_id(token)

    def with_tokens(self, tokens):
        from tokenizers import AddedToken

        raw = type(self.raw).from_str(self.raw.to_str())
        raw.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
        return HuggingFaceCore(raw)

    def save(self, directory, config):
        self.raw.save(os.path.join(directory, "tokenizer.json"))
        return {"tokenizer_class": config.get("tokenizer_class", "PreTrainedTokenizerFast")}


def _hide_tokens(spec: dict, controls: Iterable[str]) -> None:
    """Rename control tokens in a tokenizer.json, in place, to secret strings that no text contains.

    `encode_special_tokens` of the tokenizers package is not enough: it lets added tokens match that are not
    flagged special, and a Unigram model, or a BPE model with `ignore_merges`, still finds a control token
    that stands in its vocabulary. Ids do not move.
    """
    secret = secrets.token_hex(8)
    renamed = {token: f"\x00{secret}:{i}" for i, token in enumerate(controls)}
    for token in spec["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [
            [a, b] for a, b in pairs if a not in renamed and b not in renamed and a + b not in renamed
        ]
    # ByteLevel's post-processor would trim offsets; the others add the tokens that we add ourselves.
    spec.update(post_processor=None, truncation=None, padding=None)


def _stop_first_prefix(node) -> bool:
    """Turn Metaspace's "first" into "never" in a pre-tokenizer's JSON, in place; whether there was one."""
    if not isinstance(node, dict):
        return False
    if node.get("type") == "Metaspace" and node.get("prepend_scheme") == "first":
        node["prepend_scheme"] = "never"
        return True
    return any([_stop_first_prefix(child) for child in node.get("pretokenizers", ())])


class _SentencePieceCore:
    """A sentencepiece model, with the conventions of transformers' Llama tokenizer.

    The space before the first word is added to the first text of a string only, unless `legacy`, which adds
    it after every control token too. Ids past the model's own come from `added` (token -> (id, lstrip,
    rstrip)), all control.
    """

    def __init__(self, proto, added: Mapping[str, tuple[int, bool, bool]], legacy: bool, prefix: bool):
        import sentencepiece

        self.proto, self.added, self.legacy, self.prefix = proto, dict(added), legacy, prefix
        types = {i: piece.type for i, piece in enumerate(proto.pieces)}
        self.controls = {
            piece.piece: (i, False, False)
            for i, piece in enumerate(proto.pieces)
            if types[i] in (UNKNOWN, CONTROL) or (types[i] == USER_DEFINED and _is_markup(piece.piece))
        }
        self.controls.update(self.added)
        self._by_id = {row[0]: token for token, row in self.added.items()}
        self._control_ids = {row[0] for row in self.controls.values()}
        self.vocab_size = max(len(proto.pieces), max(self._control_ids, default=-1) + 1)

        ours = copy.deepcopy(proto)
        for i, piece in enumerate(ours.pieces):
            if i in self._control_ids and piece.type != UNKNOWN:
                piece.type = CONTROL
        ours.normalizer_spec.add_dummy_prefix &= prefix
        self.prefix_space = ours.normalizer_spec.add_dummy_prefix
        load = sentencepiece.SentencePieceProcessor
        self._first = self._continued = load(model_proto=ours.SerializeToString())
        # A model that squeezes white space would lose the space a continued text begins with.
        if self.prefix_space and not legacy and not ours.normalizer_spec.remove_extra_whitespaces:
            ours.normalizer_spec.add_dummy_prefix = False
            self._continued = load(model_proto=ours.SerializeToString())

    def __reduce__(self):  # a protobuf message cannot be pickled
        return _sentencepiece_core, (self.proto.SerializeToString(), self.added, self.legacy, self.prefix)

    def encode(self, text, continued):
        found = (self._continued if continued else self._first).encode(text, return_type="offset_mapping")
        return found["ids"], found["offsets"]

    def decode(self, ids, skip_special):
        out = bytearray()
        for index in ids:
            if index in self._control_ids:
                if not skip_special:
                    out += (self._by_id.get(index) or self.proto.pieces[index].piece).encode()
            elif index < len(self.proto.pieces):
                piece = self.proto.pieces[index]
                out += bytes([int(piece.piece[3:-1], 16)]) if piece.type == _BYTE else piece.piece.encode()
        text = out.decode("utf-8", errors="replace").replace(SPACE, " ")
        return text[1:] if self.prefix_space and text.startswith(" ") else text

    def token_id(self, token):
        if token in self.added:
            return self.added[token][0]
        index = self._first.piece_to_id(token)
        return index if index >= 0 and self.proto.pieces[index].piece == token else None

    def with_tokens(self, tokens):
        added = dict(self.added)
        size = self.vocab_size
        for token in tokens:
            index = self.token_id(token)
            if token not in added:
                added[token] = (size if index is None else index, False, False)
                size += index is None
        return _SentencePieceCore(self.proto, added, self.legacy, self.prefix)

    def save(self, directory, config):
        with open(os.path.join(directory, "tokenizer.model"), "wb") as file:
            file.write(self.proto.SerializeToString())
        plain = {"normalized": False, "single_word": False, "special": True}
        return {
            "tokenizer_class": config.get("tokenizer_class", "LlamaTokenizer"),
            "legacy": self.legacy,
            "added_tokens_decoder": {
                str(index): {"content": token, "lstrip": left, "rstrip": right, **plain}
                for token, (index, left, right) in sorted(self.controls.items(), key=lambda row: row[1])
            },
        }


def _sentencepiece_core(model: bytes, *arguments) -> _SentencePieceCore:
    from sentencepiece import sentencepiece_model_pb2

    return _SentencePieceCore(sentencepiece_model_pb2.ModelProto.FromString(model), *arguments)


def load_tokenizer(directory: str) -> Tokenizer | None:
    """The tokenizer of a checkpoint directory in transformers layout; None if there are no tokenizer files.

    tokenizer.json is preferred to a sentencepiece model, and that to CLIP's vocab.json and merges.txt. Raises
    FileNotFoundError for a directory that does not exist and ValueError naming the file for one that cannot be read.
    """
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"{directory}: no such directory, so no tokenizer can be read from it")
    config = _read_json(os.path.join(directory, "tokenizer_config.json"))
    token_map = _read_json(os.path.join(directory, "special_tokens_map.json"))
    # As transformers does: special_tokens_map.json goes first, unless the config says which tokens are added.
    files = (token_map, config) if "added_tokens_decoder" in config else (config, token_map)
    named = {name: token for file in files for name, token in _named_tokens(file).items()}
    if str(config.get("tokenizer_class", "")).startswith("CLIP"):
        named.setdefault("pad_token", "<|endoftext|>")
    added = _added_tokens(config, token_map, _read_json(os.path.join(directory, "added_tokens.json")))
    template = _chat_template(directory, config)
    path = os.path.join(directory, "tokenizer.json")
    if os.path.exists(path):
        core = _read_huggingface(path, named, added)
        bos = core.token_id(named["bos_token"]) if "bos_token" in named else None
        with_special = core.raw.encode("", add_special_tokens=True).ids
        add_bos = config.get("add_bos_token", bool(with_special) and with_special[0] == bos)
        return Tokenizer(core, named, bool(add_bos and bos is not None), template, config)
    for name in _SENTENCEPIECE_FILES:
        path = os.path.join(directory, name)
        if os.path.exists(path):
            return _read_sentencepiece(path, named, added, template, config)
    there = all(os.path.exists(os.path.join(directory, name)) for name in (VOCABULARY, MERGES))
    if there and str(config.get("tokenizer_class", "")).startswith("CLIP"):
        ends = (named.get(f"{name}_token", f"<|{word}oftext|>") for name, word in (("bos", "start"), ("eos", "end")))
        return Tokenizer(HuggingFaceCore(clip_tokenizer(Path(directory), *ends)), named, True, template, config)
    return None


def _read_huggingface(path: str, named: Mapping[str, str], added: Mapping[str, dict]) -> HuggingFaceCore:
    import tokenizers

    with open(path, encoding="utf-8", errors="replace") as file:
        source = file.read()
    try:
        raw = tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # the package raises bare Exception
        raise ValueError(f"{path}: not a readable tokenizer.json: {error}") from error
    known = {token.content for token in raw.get_added_tokens_decoder().values()}
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    for token in [*added, *named.values()]:
        if token not in known:
            known.add(token)
            row = added.get(token, {})
            options = {"normalized": False, **{flag: row[flag] for flag in flags if flag in row}}
            new = tokenizers.AddedToken(token, **options)
            if row.get("special", True):
                raw.add_special_tokens([new])
            else:
                raw.add_tokens([new])
    return HuggingFaceCore(raw)


def _read_sentencepiece(path, named, added, template, config) -> Tokenizer:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    with open(path, "rb") as file:
        content = file.read()
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    except DecodeError as error:
        raise ValueError(f"{path}: not a sentencepiece model: {error}") from error
    if not proto.pieces:
        raise ValueError(f"{path}: not a sentencepiece model: it holds no pieces")
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    rows = {}
    for token in [*added, *named.values()]:
        row = added.get(token, {})
        index = ids.setdefault(token, row["id"] if "id" in row else max(ids.values()) + 1)
        rows[token] = (index, bool(row.get("lstrip")), bool(row.get("rstrip")))
    spec = proto.trainer_spec
    own = {"bos": spec.bos_id, "eos": spec.eos_id, "unk": spec.unk_id, "pad": spec.pad_id}
    pieces = proto.pieces
    named = {**{f"{k}_token": pieces[i].piece for k, i in own.items() if 0 <= i < len(pieces)}, **named}
    kind = config.get("tokenizer_class") or "LlamaTokenizer"
    add_bos = config.get("add_bos_token", kind.startswith(("Llama", "Gemma", "CodeLlama")))
    prefix = config.get("add_prefix_space")
    try:
        core = _SentencePieceCore(proto, rows, bool(config.get("legacy", False)), prefix is None or prefix)
    except RuntimeError as error:
        raise ValueError(f"{path}: not a sentencepiece model that can be loaded: {error}") from error
    return Tokenizer(core, named, bool(add_bos) and "bos_token" in named, template, config)


def _read_json(path: str) -> dict:
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _content(token) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


def _named_tokens(config: Mapping) -> dict[str, str]:
    extra = config.get("extra_special_tokens")
    rows = {**config, **(extra if isinstance(extra, dict) else {})}
    return {key: _content(value) for key, value in rows.items() if key.endswith("_token") and _content(value)}


def _added_tokens(config: Mapping, token_map: Mapping, plain: Mapping) -> dict[str, dict]:
    """Tokens that the files beside the vocabulary add: content -> flags of an AddedToken, "id" if known."""
    rows: dict[str, dict] = {}
    for index, row in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        rows[row["content"]] = {**row, "id": int(index)}
    for token, index in sorted(plain.items(), key=lambda item: item[1]):
        rows.setdefault(token, {"id": index})
    for source in (config, token_map):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            tokens = source.get(key) or ()
            for token in tokens.values() if isinstance(tokens, dict) else tokens:
                if _content(token):
                    rows.setdefault(_content(token), token if isinstance(token, dict) else {})
    return rows


def _chat_template(directory: str, config: Mapping) -> str | None:
    path = os.path.join(directory, "chat_template.jinja")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    template = config.get("chat_template")
    if template is None:
        template = _read_json(os.path.join(directory, "chat_template.json")).get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {row["name"]: row["template"] for row in template}
        template = named.get("default")
    return template
