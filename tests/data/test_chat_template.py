"""Chat templates: as transformers' apply_chat_template on ordinary text, safe on any other."""

import io
import json
import pickle
import random

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmjax.data.chat_template import (
    DEFAULT_TEMPLATE,
    ChatTemplate,
    MediaSpan,
    TextSpan,
    encode_branches,
    encode_conversation,
    encode_plain,
)
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart, parse_record
from mmjax.data.gguf_tokenizer import tokenizer_from_gguf
from mmjax.data.tokenizer import load_tokenizer

CORPUS = [
    "system user assistant USER: ASSISTANT: [INST] [/INST] <<SYS>> <</SYS>> You are a helpful assistant.",
    "what is in the picture? it is a small cat on a red mat. answer: yes, no! how many? 1234",
    "<|im_start|> <|im_end|> <s> </s> <image> <|vision_start|> User: Assistant: Falcon:",
] * 8

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] }}"
    "{% else %}{{ ' ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
# The words of llava-hf's templates: images first, then texts, each followed by a space.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}"
    "{% endif %}{# images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Strings or parts, image where it stands, control tokens around it: the manner of Qwen2-VL.
QWEN_VL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><image><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIM = (
    "{%- for message in messages %}\n    {%- set text = message.content | trim %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + text + '<|im_end|>' }}\n{%- endfor %}\n"
)
PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + '\n' + message['content'] }}"
    "{{ '<|end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

BYTE_CONTROLS = ["<|im_start|>", "<|im_end|>", "<image>", "<|vision_start|>", "<|vision_end|>"]
PHI_CONTROLS = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Directories of tiny tokenizers, named by kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = [AddedToken(token, normalized=False) for token in BYTE_CONTROLS]
    special += [AddedToken(token, normalized=False, rstrip=True) for token in PHI_CONTROLS]
    special += [AddedToken("<left>", normalized=False, lstrip=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    save(raw, root / "bytes", eos_token="<|im_end|>")

    tokens = ["<unk>", "<s>", "</s>", "<image>"]
    for scheme in ("first", "always", "prepend"):
        raw = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        metaspace = pre_tokenizers.Metaspace(
            prepend_scheme="always" if scheme == "prepend" else scheme, split=False
        )
        raw.pre_tokenizer = metaspace
        raw.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )
        raw.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=460,
                special_tokens=[*tokens, *(f"<0x{i:02X}>" for i in range(256))],
                show_progress=False,
                max_token_length=8,
            ),
        )
        if scheme == "prepend":  # how Llama's first tokenizer.json files say "always"
            raw.pre_tokenizer = None
            raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        spec = json.loads(raw.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in tokens]
        raw = tokenizers.Tokenizer.from_str(json.dumps(spec))
        save(raw, root / scheme, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        control_symbols=["<image>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (root / "sentencepiece").mkdir()
    (root / "sentencepiece" / "tokenizer.model").write_bytes(model.getvalue())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **names}
    (root / "sentencepiece" / "tokenizer_config.json").write_text(json.dumps(config))
    return root


def save(raw, directory, **names):
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(directory)


def ids_of(spans, image=None):
    return [i for span in spans for i in (span.ids if isinstance(span, TextSpan) else [image])]


def trained(spans, tokenizer):
    """The text whose tokens have loss, one string per consecutive stretch."""
    stretches, open_ids = [], []
    for span in spans:
        for i, on in zip(span.ids, span.loss, strict=True) if isinstance(span, TextSpan) else [(None, False)]:
            if on:
                open_ids.append(i)
            elif open_ids:
                stretches.append(open_ids)
                open_ids = []
    stretches += [open_ids] if open_ids else []
    return [tokenizer.decode(ids, skip_special=False) for ids in stretches]


WORDS = "what is the picture small cat answer yes 12 ... ( don't <b> café 日本 🦊 USER: a".split()


def random_messages(rng, turns, system, outer_space):
    def text():
        words = [
            rng.choice(WORDS) + rng.choice([" ", " ", "\n", "  ", ", ", ".\n\n"])
            for _ in range(rng.randint(1, 6))
        ]
        text = "".join(words)
        return rng.choice(["", " ", "\n"]) + text if outer_space else text.strip()

    messages = [{"role": "system", "content": text()}] if system else []
    for _ in range(turns):
        messages += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
    return messages


@pytest.mark.parametrize(
    "kind, template, system",
    [
        ("bytes", CHATML, True),
        ("bytes", TRIM, True),
        ("bytes", PHI, True),
        ("bytes", QWEN_VL, True),
        ("first", LLAMA2, True),
        ("first", VICUNA, False),
        ("always", LLAMA2, True),
        ("always", VICUNA, False),
        ("prepend", VICUNA, False),
        ("sentencepiece", LLAMA2, True),
        ("sentencepiece", VICUNA, False),
    ],
)
def test_ids_are_those_of_transformers(places, kind, template, system):
    theirs, ours = AutoTokenizer.from_pretrained(places / kind), load_tokenizer(str(places / kind))
    rng = random.Random(0)
    for trial in range(24):
        messages = random_messages(rng, rng.randint(1, 3), system and trial % 2, outer_space=trial % 3 == 0)
        prompt = trial % 4 == 0
        expected = theirs.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=prompt, tokenize=True, return_dict=False
        )
        conversation = parse_record({"messages": messages}, "x")
        spans = encode_conversation(conversation, ours, template, add_generation_prompt=prompt)
        assert len(spans) == 1 and list(spans[0].ids) == expected, messages
        assert len(spans[0].loss) == len(expected)


@pytest.mark.parametrize("kind, template", [("first", LLAVA), ("sentencepiece", LLAVA), ("bytes", QWEN_VL)])
def test_ids_with_image_parts_are_those_of_transformers(places, kind, template):
    theirs, ours = AutoTokenizer.from_pretrained(places / kind), load_tokenizer(str(places / kind))
    parts = [
        {"type": "text", "text": "what is in the picture? "},
        {"type": "image", "path": "a.png"},
        {"type": "text", "text": "and in the other?"},
        {"type": "image", "path": "b.png"},
    ]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat."}]},
        {"role": "user", "content": parts[1:3]},
    ]
    expected = theirs.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    conversation = parse_record({"messages": messages}, "x")
    spans = encode_conversation(
        conversation, ours, template, {"image": "<image>"}, add_generation_prompt=True
    )
    image = ours.special_tokens["<image>"]
    assert ids_of(spans, image) == expected and expected.count(image) == 3
    assert [span for span in spans if isinstance(span, MediaSpan)] == [
        MediaSpan("image", i) for i in range(3)
    ]
    assert trained(spans, ours) == (["a cat.<|im_end|>"] if kind == "bytes" else ["a cat."])


def test_a_template_of_strings_gets_the_image_where_its_part_stands(places):
    theirs, ours = AutoTokenizer.from_pretrained(places / "first"), load_tokenizer(str(places / "first"))
    record = {
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nwhat is <image> it?"},
            {"from": "gpt", "value": "a cat."},
        ],
    }
    spans = encode_conversation(parse_record(record, "x"), ours, VICUNA)
    messages = [
        {"role": "user", "content": "<image>\nwhat is <image> it?"},
        {"role": "assistant", "content": "a cat."},
    ]
    expected = theirs.apply_chat_template(messages, chat_template=VICUNA, tokenize=True, return_dict=False)
    assert ids_of(spans, ours.special_tokens["<image>"]) == expected
    assert [type(span) for span in spans] == [TextSpan, MediaSpan, TextSpan, MediaSpan, TextSpan]
    assert trained(spans, ours) == ["a cat.</s>"]


def test_takes_parts_is_found_by_role(places):
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    assert ChatTemplate(LLAVA).takes_parts("user") and ChatTemplate(LLAVA).takes_parts("assistant")
    assert ChatTemplate(QWEN_VL).takes_parts("user") and ChatTemplate(QWEN_VL).takes_parts("system")
    for source in (CHATML, LLAMA2, VICUNA, TRIM, PHI, DEFAULT_TEMPLATE):
        for role in ("system", "user", "assistant"):
            assert not ChatTemplate(source).takes_parts(role, names), (source, role)
    mixed = (
        "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}{{ c.text }}{% endfor %}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(mixed)
    assert template.takes_parts("user", names) and not template.takes_parts("assistant", names)


def test_loss_is_on_answers_and_what_ends_them(places):
    messages = [
        {"role": "user", "content": "is it a cat?"},
        {"role": "assistant", "content": "yes, a cat."},
        {"role": "user", "content": "answer: yes?"},
        {"role": "assistant", "content": "no!", "train": False},
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": "12\n"},
    ]
    conversation = parse_record({"messages": messages}, "x")
    for kind, template, expected in [
        ("bytes", CHATML, ["yes, a cat.<|im_end|>", "12\n<|im_end|>"]),
        ("first", VICUNA, ["yes, a cat.</s>", "12\n</s>"]),
        ("sentencepiece", VICUNA, ["yes, a cat.</s>", "12\n</s>"]),
        ("first", LLAMA2, ["yes, a cat. </s>", "12 </s>"]),
        ("first", LLAVA, ["yes, a cat.", "12\n"]),
    ]:
        tokenizer = load_tokenizer(str(places / kind))
        spans = encode_conversation(conversation, tokenizer, template)
        assert trained(spans, tokenizer) == expected, (kind, template)


def test_a_token_across_template_and_answer_is_the_answers_only_after_white_space(places):
    tokenizer = load_tokenizer(str(places / "bytes"))
    answer = Message("assistant", (TextPart("cat"),))
    source = "{{ 'ASSISTANT: ' + messages[0].content + '<|im_end|>' }}"
    (span,) = encode_conversation(Conversation((answer,)), tokenizer, source)
    by_text = {
        tokenizer.decode([i], skip_special=False): on for i, on in zip(span.ids, span.loss, strict=True)
    }
    assert by_text[" cat"] and by_text["<|im_end|>"] and not by_text[":"]
    # "picture" is one token: the template's "pic" is no white space, so the whole token is not the answer's.
    (index,) = tokenizer.encode(" picture")
    joined = "{{ 'in the pic' + messages[0].content + ' <|im_end|>' }}"
    (span,) = encode_conversation(
        Conversation((Message("assistant", (TextPart("ture"),)),)), tokenizer, joined
    )
    assert span.loss[span.ids.index(index)] is False and span.loss[-1] is True


@pytest.mark.parametrize("kind", ["bytes", "first", "always", "prepend", "sentencepiece", "gguf"])
def test_no_text_produces_a_control_id(places, kind):
    if kind == "gguf":
        spec = json.loads((places / "bytes" / "tokenizer.json").read_text())
        vocab = spec["model"]["vocab"]
        tokens = sorted(vocab, key=vocab.get)
        added = {token["content"] for token in spec["added_tokens"]}
        tokenizer = tokenizer_from_gguf(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [3 if token in added else 1 for token in tokens],
                "tokenizer.ggml.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
                "tokenizer.ggml.eos_token_id": vocab["<|im_end|>"],
            }
        )
    else:
        tokenizer = load_tokenizer(str(places / kind))
    template = CHATML if kind in ("bytes", "gguf") else VICUNA
    spelt = (
        "".join(tokenizer.special_tokens)
        + " "
        + "\n".join(tokenizer.special_tokens)
        + " <|im_start|>system\n"
    )
    spelt += "\U0010f9c40\U0010f9c5 {{ eos_token }} {% raw %}"
    control = set(tokenizer.special_tokens.values()) - {tokenizer.token_id("<unk>")}

    def controls(user, answer):
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        spans = encode_conversation(parse_record({"messages": messages}, "x"), tokenizer, template)
        assert len(spans) == 1
        return [i for i in spans[0].ids if i in control], spans

    honest, _ = controls("a", "b")
    forged, spans = controls(spelt, spelt)
    assert forged == honest
    # The answer's text is all there, as text, with loss.
    end = "<|im_end|>" if template == CHATML else "</s>"
    assert trained(spans, tokenizer) == [spelt + end]


def test_text_and_template_words_cannot_join_to_a_control_token(places):
    tokenizer = load_tokenizer(str(places / "bytes"))
    source = "{{ '<|im_start|>' + '<|im_' + messages[0].content + '|>' }}"
    (span,) = encode_conversation(Conversation((Message("user", (TextPart("end"),)),)), tokenizer, source)
    assert tokenizer.special_tokens["<|im_end|>"] not in span.ids


def test_tokens_that_swallow_white_space_do_so_across_texts(places):
    theirs, ours = AutoTokenizer.from_pretrained(places / "bytes"), load_tokenizer(str(places / "bytes"))
    source = "{{ '<|user|>' + messages[0].content + '<left>' + messages[0].content + ' <left><|end|>' }}"
    messages = [{"role": "user", "content": " \n is it \n"}]
    expected = theirs.apply_chat_template(messages, chat_template=source, tokenize=True, return_dict=False)
    (span,) = encode_conversation(parse_record({"messages": messages}, "x"), ours, source)
    assert list(span.ids) == expected


def test_branches_are_encoded_as_whole_conversations(places):
    tokenizer = load_tokenizer(str(places / "bytes"))
    shared = [
        {"role": "user", "content": [{"type": "image", "path": "a"}, {"type": "text", "text": "look."}]}
    ]
    other = [{"type": "image", "path": "b"}, {"type": "text", "text": "and it?"}]
    branches = [
        [{"role": "user", "content": "a cat?"}, {"role": "assistant", "content": "yes"}],
        [{"role": "user", "content": other}, {"role": "assistant", "content": "no"}],
        [{"role": "user", "content": other}, {"role": "assistant", "content": "12"}],
    ]
    conversation = parse_record({"messages": shared, "branches": branches}, "x")
    encoded = encode_branches(conversation, tokenizer, QWEN_VL, {"image": "<image>"})
    for spans, branch in zip(encoded, branches, strict=True):
        whole = parse_record({"messages": [*shared, *branch]}, "x")
        alone = encode_conversation(whole, tokenizer, QWEN_VL, {"image": "<image>"})
        assert [s for s in spans if isinstance(s, TextSpan)] == [s for s in alone if isinstance(s, TextSpan)]
    items = [[span.item for span in spans if isinstance(span, MediaSpan)] for spans in encoded]
    assert items == [[0], [0, 1], [0, 2]]
    assert [part.source for part in conversation.media("image")] == ["a", "b", "b"]
    with pytest.raises(ValueError, match="encode_branches"):
        encode_conversation(conversation, tokenizer, QWEN_VL)
    (only,) = encode_branches(
        parse_record({"messages": shared}, "x"), tokenizer, QWEN_VL, {"image": "<image>"}
    )
    assert isinstance(only[1], MediaSpan)


def test_plain_captions(places):
    theirs = AutoTokenizer.from_pretrained(places / "sentencepiece")
    tokenizer = load_tokenizer(str(places / "sentencepiece"))
    image, caption = MediaPart("image", "a"), "a small cat."
    conversation = Conversation(
        (Message("user", (image,)), Message("assistant", (TextPart(caption),))), name="x"
    )
    first, media, text = encode_plain(conversation, tokenizer)
    assert first == TextSpan((tokenizer.bos_id,), (False,)) and media == MediaSpan("image", 0)
    assert [*first.ids, tokenizer.special_tokens["<image>"], *text.ids] == theirs.encode("<image>" + caption)
    assert all(text.loss) and tokenizer.decode(text.ids) == caption
    (alone,) = encode_plain(Conversation((Message("assistant", (TextPart(caption),)),)), tokenizer)
    assert list(alone.ids) == theirs.encode(caption) and alone.loss == (False,) + (True,) * (
        len(alone.ids) - 1
    )
    no_bos = load_tokenizer(str(places / "bytes"))
    assert isinstance(encode_plain(conversation, no_bos)[0], MediaSpan)


def test_default_template_is_only_used_when_given(places):
    tokenizer = load_tokenizer(str(places / "sentencepiece"))
    messages = [
        {"role": "system", "content": "be a cat."},
        {"role": "user", "content": "is it?"},
        {"role": "assistant", "content": "yes"},
    ]
    conversation = parse_record({"messages": messages}, "x")
    with pytest.raises(ValueError, match="no chat template.*DEFAULT_TEMPLATE"):
        encode_conversation(conversation, tokenizer)
    (span,) = encode_conversation(conversation, tokenizer, DEFAULT_TEMPLATE)
    assert span.ids[0] == tokenizer.bos_id
    text = "<s>be a cat.\nUSER: is it?\nASSISTANT: yes</s>\n"
    assert tokenizer.decode(span.ids, skip_special=False) == text
    assert trained([span], tokenizer) == ["yes</s>"]
    (span,) = encode_conversation(conversation, tokenizer, DEFAULT_TEMPLATE, add_generation_prompt=True)
    assert tokenizer.decode(span.ids).endswith("ASSISTANT:")


def test_a_tokenizers_own_template_and_variables(places):
    tokenizer = load_tokenizer(str(places / "bytes"))
    conversation = parse_record({"messages": [{"role": "user", "content": "it"}]}, "x")
    tokenizer.chat_template = "{{ messages[0].content }}{% if loud %}!{% endif %}"
    assert tokenizer.decode(encode_conversation(conversation, tokenizer)[0].ids) == "it"
    loud = pickle.loads(pickle.dumps(ChatTemplate(tokenizer.chat_template, {"loud": True})))
    assert tokenizer.decode(encode_conversation(conversation, tokenizer, loud)[0].ids) == "it!"


@pytest.mark.parametrize(
    "source, words",
    [
        ("{% for %}", "not valid jinja"),
        ("{{ raise_exception('no such roles') }}", "no such roles"),
        ("{{ messages[0].content[:2] }}", "cuts or rewrites"),
        ("{{ messages[0].content }}", "leaves out message 1 .assistant"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ missing.key }}", "refuses"),
        ("{% for m in messages %}{{ m.content }}<image>{% endfor %}", "0 image item.*2 image placeholder"),
    ],
)
def test_errors_name_the_sample_and_the_reason(places, source, words):
    tokenizer = load_tokenizer(str(places / "bytes"))
    messages = [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": "yes"}]
    conversation = parse_record({"messages": messages}, "sample-5")
    with pytest.raises(ValueError, match=f"sample-5.*{words}"):
        encode_conversation(conversation, tokenizer, source, {"image": "<image>"})


def test_media_that_the_template_does_not_print_are_an_error(places):
    tokenizer = load_tokenizer(str(places / "bytes"))
    content = [{"type": "image", "path": "a"}, {"type": "text", "text": "is it?"}]
    conversation = parse_record({"messages": [{"role": "user", "content": content}]}, "sample-6")
    silent = "{% for c in messages[0].content %}{{ c.text }}{% endfor %}"
    with pytest.raises(ValueError, match="sample-6.*1 image item.*0 image placeholder"):
        encode_conversation(conversation, tokenizer, silent, {"image": "<image>"})
    with pytest.raises(ValueError, match='sample-6.*no placeholder.*"image"'):
        encode_conversation(conversation, tokenizer, QWEN_VL)


def test_transformers_helpers_are_there(places):
    tokenizer = load_tokenizer(str(places / "bytes"))
    source = (
        "{{ strftime_now('%Y') | length }}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ {'é': '<'} | tojson }}{{ dict(a=1) | tojson }}"
        "{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}{{ m.content }}"
        "{% endfor %}{{ tools is none }}"
    )
    conversation = parse_record({"messages": [{"role": "user", "content": "it"}]}, "x")
    theirs = AutoTokenizer.from_pretrained(places / "bytes")
    expected = theirs.apply_chat_template(
        [{"role": "user", "content": "it"}], chat_template=source, tokenize=True, return_dict=False
    )
    assert ids_of(encode_conversation(conversation, tokenizer, source)) == expected
