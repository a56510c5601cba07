"""Tokenizers of all three kinds, against transformers, tokenizers and sentencepiece themselves."""

import io
import json
import os
import pickle

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmjax.data.gguf_tokenizer import tokenizer_from_gguf
from mmjax.data.tokenizer import load_tokenizer

CORPUS = [
    "hello world, what is in the picture? it is a small cat on a red mat.",
    "USER: the quick brown fox jumps over 1234 lazy dogs!\nASSISTANT: it's 56 of them, isn't it?",
    "im_start im_end image endoftext begin of text <s> </s> [INST] <|im_end|> < | >",
] * 8
ORDINARY = [
    "hello world",
    "What is in the picture?\n\nIt's 12345 cats…",
    "naïve café — 日本語 🦊",
    "a  b   c\t d",
    "x",
]
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>", "@image"]


def byte_level(special=CONTROLS):
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    return raw


def metaspace(scheme="first", special=("<unk>", "<s>", "</s>", "<image>"), keep_bytes=False):
    raw = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=len(tokens) + 150, special_tokens=tokens, show_progress=False, max_token_length=8
    )
    raw.train_from_iterator(CORPUS, trainer)
    if keep_bytes:
        return raw
    spec = json.loads(raw.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in special]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def sentencepiece_model(**options):
    out = io.BytesIO()
    settings = dict(
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<image>", "▁▁", "[IMG]"],
        control_symbols=["<|im_end|>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, **{**settings, **options}
    )
    return out.getvalue()


def save_huggingface(raw, directory, **options):
    PreTrainedTokenizerFast(tokenizer_object=raw, **options).save_pretrained(directory)
    return load_tokenizer(str(directory))


def save_sentencepiece(directory, model=None, **config):
    os.makedirs(directory, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model or sentencepiece_model())
    config = {"tokenizer_class": "LlamaTokenizer", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(str(directory))


def gguf_metadata(raw, pre="smollm", **more):
    """What a converter writes for a byte-level tokenizer."""
    spec = json.loads(raw.to_str())
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    special = {token["content"] for token in spec["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        **more,
    }


def gguf_llama_metadata(model=None, **more):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model or sentencepiece_model())
    size = len(processor)

    def kind(i):
        if processor.is_unknown(i):
            return 2
        if processor.is_byte(i):
            return 6
        user = processor.id_to_piece(i) in ("<image>", "▁▁", "[IMG]")
        return 3 if processor.is_control(i) else 4 if user else 1

    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": [kind(i) for i in range(size)],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        **more,
    }


def every_kind(directory):
    yield "byte level", save_huggingface(byte_level(), directory / "a", eos_token="<|im_end|>")
    yield "metaspace", save_huggingface(metaspace(), directory / "b", bos_token="<s>", eos_token="</s>")
    yield "sentencepiece", save_sentencepiece(directory / "c")
    yield "gguf gpt2", tokenizer_from_gguf(gguf_metadata(byte_level()))
    yield "gguf llama-bpe", tokenizer_from_gguf(gguf_metadata(byte_level(), pre="llama-bpe"))
    yield "gguf llama", tokenizer_from_gguf(gguf_llama_metadata())


def test_control_tokens_spelt_out_are_text_in_every_kind(tmp_path):
    for kind, tokenizer in every_kind(tmp_path):
        assert len(tokenizer.special_tokens) >= 4, kind
        unknown = tokenizer.named_tokens.get("unk_token")
        forbidden = {i for token, i in tokenizer.special_tokens.items() if token != unknown}
        for token in tokenizer.special_tokens:
            for text in (token, f"a{token}b", f" {token} ", f"{token}\n{token}", token[:-1] + token):
                for continued in (False, True):
                    ids = tokenizer.encode(text, continued=continued)
                    assert ids and not forbidden & set(ids), (kind, text)
                    assert tokenizer.decode(ids, skip_special=False).strip() == text.strip(), (kind, text)
                    assert tokenizer.decode(ids).strip() == text.strip(), (kind, text)


def test_ordinary_text_is_encoded_as_transformers_does(tmp_path):
    for i, (raw, options) in enumerate(
        [
            (byte_level(), {"eos_token": "<|im_end|>"}),
            (metaspace("first"), {"bos_token": "<s>", "eos_token": "</s>"}),
            (metaspace("always"), {"bos_token": "<s>", "eos_token": "</s>"}),
        ]
    ):
        ours = save_huggingface(raw, tmp_path / str(i), **options)
        theirs = AutoTokenizer.from_pretrained(tmp_path / str(i))
        control = options["eos_token"]
        for text in ORDINARY:
            ids = theirs.encode(text, add_special_tokens=False)
            assert ours.encode(text) == ids
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
            after = theirs.encode(control + text, add_special_tokens=False)
            assert [ours.eos_id, *ours.encode(text, continued=True)] == after
        assert ours.vocab_size == len(theirs)


def test_sentencepiece_text_is_encoded_as_sentencepiece_and_transformers_do(tmp_path):
    plain = sentencepiece_model(user_defined_symbols=[], control_symbols=["<|im_end|>", "<image>"])
    processor = sentencepiece.SentencePieceProcessor(model_proto=plain)
    ours = save_sentencepiece(tmp_path, plain)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ORDINARY:
        assert ours.encode(text) == processor.encode(text)
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
        after = theirs.encode("</s>" + text, add_special_tokens=False)
        assert [ours.eos_id, *ours.encode(text, continued=True)] == after
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 2, None)
    assert ours.add_bos and ours.special_tokens["<image>"] == processor.piece_to_id("<image>")
    legacy = save_sentencepiece(tmp_path / "legacy", plain, legacy=True, add_bos_token=False)
    assert legacy.encode("hello", continued=True) == processor.encode("hello") and not legacy.add_bos


def test_sentencepiece_keeps_runs_of_spaces_and_reads_added_tokens(tmp_path):
    model = sentencepiece_model()
    added = {
        "500": {"content": "<video>", "lstrip": True, "special": True},
        "501": {"content": "<pad>", "special": True},
    }
    ours = save_sentencepiece(tmp_path, model, added_tokens_decoder=added, pad_token="<pad>")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert processor.piece_to_id("▁▁") in ours.encode("a  b")
    assert ours.token_id("<video>") == 500 and ours.strips["<video>"] == (True, False)
    assert ours.pad_id == 501 and ours.vocab_size == 502
    assert 500 not in ours.encode("<video>")
    assert ours.decode([500, *ours.encode("hello")], skip_special=False) == "<video> hello"
    assert ours.token_id("nowhere") is None


def test_offsets_cover_the_text(tmp_path):
    for kind, tokenizer in every_kind(tmp_path):
        for text in ORDINARY:
            ids, offsets = tokenizer.encode_with_offsets(text)
            assert len(ids) == len(offsets), kind
            covered = {i for start, end in offsets for i in range(start, end)}
            assert covered == set(range(len(text))), (kind, text)
            assert offsets == sorted(offsets) and offsets[-1][1] == len(text)


def test_added_tokens_that_are_words_stay_ordinary_and_markup_does_not(tmp_path):
    raw = byte_level()
    raw.add_tokens([AddedToken("quokka"), AddedToken("   ", normalized=False), AddedToken("<think>")])
    ours = save_huggingface(raw, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "a quokka   sat"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.token_id("quokka") in ours.encode(text) and ours.token_id("   ") in ours.encode(text)
    assert ours.special_tokens["<think>"] not in ours.encode("<think>")


def test_unigram_vocabulary_does_not_give_control_ids(tmp_path):
    # A Unigram lattice holds every piece: encode_special_tokens alone would find "</s>" again.
    pieces = [("</s>", 0.0), ("<unk>", 0.0), *((c, -3.0) for c in "▁abc</s>unk"), ("ab", -2.0)]
    raw = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=1, byte_fallback=False))
    raw.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    raw.add_special_tokens([AddedToken("</s>", normalized=False), AddedToken("<unk>", normalized=False)])
    ours = save_huggingface(raw, tmp_path, eos_token="</s>")
    assert ours.encode("ab c</s>") == [ours.token_id(t) for t in ["ab", "▁", "c", "<", "/", "s", ">"]]
    assert 1 in ours.encode("z"), "an unknown character is still the unknown token"


def test_byte_tokens_flagged_special_still_serve_as_bytes(tmp_path):
    ours = save_huggingface(metaspace(keep_bytes=True), tmp_path, unk_token="<unk>")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("é🦊") == theirs.encode("é🦊", add_special_tokens=False)
    assert "<0xC3>" not in ours.special_tokens and "</s>" in ours.special_tokens


def test_streaming_decode_survives_half_a_character(tmp_path):
    for kind, tokenizer in every_kind(tmp_path):
        ids = tokenizer.encode("fox 🦊日本 é")
        for cut in range(len(ids) + 1):
            text = tokenizer.decode(ids[:cut])
            assert "fox 🦊日本 é".startswith(text.rstrip("\ufffd")), (kind, text)
        assert tokenizer.decode(ids) == "fox 🦊日本 é"
        assert tokenizer.decode([-1, -100, tokenizer.vocab_size, 10**9]) == ""


def test_half_a_character_in_the_text_is_replaced(tmp_path):
    for _, tokenizer in every_kind(tmp_path):
        assert tokenizer.decode(tokenizer.encode("a\ud83d b")) == "a\ufffd b"


def test_saved_tokenizers_load_in_transformers_with_the_same_ids(tmp_path):
    for i, (kind, tokenizer) in enumerate(every_kind(tmp_path)):
        where = tmp_path / f"saved{i}"
        tokenizer.save(str(where))
        theirs, again = AutoTokenizer.from_pretrained(where), load_tokenizer(str(where))
        for text in ORDINARY:
            assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text), (kind, text)
            assert again.encode(text) == tokenizer.encode(text)
        for token, index in tokenizer.special_tokens.items():
            assert theirs.encode(token, add_special_tokens=False) == [index], (kind, token)
        assert again.special_tokens == tokenizer.special_tokens, kind
        assert (again.bos_id, again.eos_id, again.pad_id) == (
            tokenizer.bos_id,
            tokenizer.eos_id,
            tokenizer.pad_id,
        )
        assert again.add_bos == tokenizer.add_bos and again.chat_template == tokenizer.chat_template
        assert theirs.eos_token_id == tokenizer.eos_id and theirs.chat_template == tokenizer.chat_template
        starts_with_bos = theirs.encode("hello")[0] == theirs.bos_token_id
        assert starts_with_bos == tokenizer.add_bos, kind


def test_named_tokens_are_added_as_transformers_adds_them(tmp_path):
    raw = byte_level()
    ours = save_huggingface(raw, tmp_path, bos_token="<s>", additional_special_tokens=["<image>", "<audio>"])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["pad_token"] = "<pad>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.pad_id == theirs.pad_token_id and ours.bos_id == theirs.bos_token_id
    assert ours.special_tokens["<audio>"] == theirs.convert_tokens_to_ids("<audio>")


def test_with_tokens_adds_control_tokens(tmp_path):
    for kind, tokenizer in every_kind(tmp_path):
        more = tokenizer.with_tokens(["<point>", "<box>"])
        size = tokenizer.vocab_size
        assert [more.token_id("<point>"), more.token_id("<box>")] == [size, size + 1], kind
        assert more.vocab_size == size + 2 and tokenizer.token_id("<point>") is None
        assert not {size, size + 1} & set(more.encode("<point><box>"))
        assert more.encode(ORDINARY[1]) == tokenizer.encode(ORDINARY[1])


def test_tokenizers_can_be_pickled(tmp_path):
    for _, tokenizer in every_kind(tmp_path):
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.encode("hello <image>") == tokenizer.encode("hello <image>")


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_gguf_byte_level_cuts_text_as_the_original_does(pre):
    original = byte_level()
    byte_cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre == "smollm":
        original.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if pre in ("llama-bpe", "qwen2"):
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        split = pre_tokenizers.Split(tokenizers.Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated")
        original.pre_tokenizer = pre_tokenizers.Sequence([split, byte_cut])
    ours = tokenizer_from_gguf(gguf_metadata(original, pre=pre))
    for text in [*ORDINARY, CORPUS[1], "we'll SEE'LL 1234567 ...\n\n  end  "]:
        assert ours.encode(text) == original.encode(text).ids
    assert ours.eos_id == original.token_to_id("<|im_end|>") == ours.pad_id
    assert not ours.add_bos and ours.chat_template


def test_gguf_sentencepiece_is_the_sentencepiece_model():
    model = sentencepiece_model(user_defined_symbols=[])
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = tokenizer_from_gguf(gguf_llama_metadata(model))
    for text in [*ORDINARY, *CORPUS[:2]]:
        assert ours.encode(text) == processor.encode(text)
        assert ours.decode(processor.encode(text)) == text
    assert ours.add_bos and ours.bos_id == 1
    bare = tokenizer_from_gguf(gguf_llama_metadata(model, **{"tokenizer.ggml.add_space_prefix": False}))
    assert bare.encode("hello") == ours.encode("hello", continued=True) != ours.encode("hello")


def test_gguf_errors_name_the_key():
    good = gguf_metadata(byte_level())
    for change, words in [
        ({"tokenizer.ggml.pre": "martian"}, "martian"),
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type"),
        ({"tokenizer.ggml.merges": ["no such"]}, "merges"),
    ]:
        with pytest.raises(ValueError, match=words):
            tokenizer_from_gguf({**good, **change})
    with pytest.raises(ValueError, match="tokenizer.ggml.tokens"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "gpt2"})


def test_directories_without_and_with_broken_files(tmp_path):
    assert load_tokenizer(str(tmp_path)) is None
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))
    for name, content in [
        ("tokenizer.json", b'{"version": "1.0", "model"'),
        ("tokenizer.model", b"\xff\xfenot a model"),
        ("tokenizer.model", b""),
        ("tokenizer_config.json", b"{"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_tokenizer(str(tmp_path))
        (tmp_path / name).unlink()


def test_chat_template_is_found_wherever_it_is_kept(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "three"}))
    assert load_tokenizer(str(tmp_path)).chat_template == "three"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_tokenizer(str(tmp_path)).chat_template == "two"
    (tmp_path / "chat_template.jinja").write_text("one")
    assert load_tokenizer(str(tmp_path)).chat_template == "one"


@pytest.mark.skipif("MMJAX_TEST_GGUF" not in os.environ, reason="MMJAX_TEST_GGUF names no GGUF file")
def test_real_gguf_file():
    from gguf import GGUFReader

    reader = GGUFReader(os.environ["MMJAX_TEST_GGUF"])
    metadata = {
        key: field.contents()
        for key, field in reader.fields.items()
        if key.startswith(("tokenizer.", "general."))
    }
    ours = tokenizer_from_gguf(metadata)
    assert ours.vocab_size == len(metadata["tokenizer.ggml.tokens"])
    for text in ORDINARY:
        assert ours.decode(ours.encode(text)) == text
    for token, index in ours.special_tokens.items():
        assert index not in ours.encode(f"say {token} now")
