"""Generation against transformers' `generate`, against a loop of full forwards, and its promises about
programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.distributed.rules import shardings
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.cache import unstack
from mmjax.infer.generate import GenerateOptions, Programs, generate, program_length
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.mlp import MLPProjectorConfig

LLAMA = DecoderConfig(
    vocab_size=97,
    width=42,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=56,
    max_positions=128,
    norm_eps=1e-5,
)
PAD = 0


def random_params(model):
    """Larger weights than a fresh model's, so that the likeliest token depends on the whole prompt."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(np.float32) * 0.3), model.param_shapes()
    )


@pytest.fixture(scope="module")
def model():
    return MultimodalLM(MultimodalLMConfig(LLAMA))


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.fixture(scope="module")
def programs(model):
    return Programs(model)


def stream(prompts, side="left", length=None) -> TextStream:
    length = length or max(map(len, prompts))
    tokens = np.full((len(prompts), length), PAD, np.int32)
    valid = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        at = slice(length - len(prompt), length) if side == "left" else slice(0, len(prompt))
        tokens[row, at], valid[row, at] = prompt, 1
    return TextStream(tokens, np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32), valid)


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, LLAMA.vocab_size, size=n).tolist() for n in lengths]


def text_batch(prompts, **kwargs) -> Batch:
    return Batch({"text": stream(prompts, **kwargs)})


@pytest.fixture(scope="module")
def llama(params):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    c = LLAMA
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.width,
        intermediate_size=c.mlp_width,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=c.max_positions,
        rms_norm_eps=c.norm_eps,
        rope_theta=c.rope_theta,
        tie_word_embeddings=False,
    )
    reference = transformers.LlamaForCausalLM(config).eval()
    backbone = jax.tree.map(np.array, params["backbone"])
    state = {
        "model.embed_tokens.weight": backbone["embed"]["embedding"],
        "model.norm.weight": backbone["norm"]["scale"],
        "lm_head.weight": backbone["lm_head"]["kernel"].T,
    }
    blocks = backbone["blocks"]
    for layer in range(c.num_layers):
        name = f"model.layers.{layer}."
        state[name + "input_layernorm.weight"] = blocks["attn_norm"]["scale"][layer]
        state[name + "post_attention_layernorm.weight"] = blocks["mlp_norm"]["scale"][layer]
        for key in "qkv":
            kernel = blocks["attn"][key]["kernel"][layer]
            state[name + f"self_attn.{key}_proj.weight"] = kernel.reshape(c.width, -1).T
        o = blocks["attn"]["o"]["kernel"][layer]
        state[name + "self_attn.o_proj.weight"] = o.reshape(-1, c.width).T
        for key in ("gate", "up", "down"):
            state[name + f"mlp.{key}_proj.weight"] = blocks["mlp"][key]["kernel"][layer].T
    reference.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()})
    return reference


def theirs(llama, prompts, **kwargs) -> np.ndarray:
    """What transformers generates, without the prompt (which it wants padded on the left)."""
    import torch

    text = stream(prompts)
    out = llama.generate(
        input_ids=torch.tensor(text.tokens, dtype=torch.long),
        attention_mask=torch.tensor(text.segment_ids, dtype=torch.long),
        pad_token_id=PAD,
        do_sample=False,
        **kwargs,
    )
    return out[:, text.tokens.shape[1] :].numpy()


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_equals_transformers_token_for_token(model, params, programs, llama, side):
    prompts = prompts_of(7, 1, 12, 5)
    expected = theirs(llama, prompts, max_new_tokens=20, eos_token_id=None)
    ours = generate(model, params, text_batch(prompts, side=side), GenerateOptions(max_new_tokens=20), programs)
    np.testing.assert_array_equal(ours.tokens, expected)
    assert ours.tokens.dtype == np.int32 and ours.lengths.tolist() == [20] * 4
    assert len({tuple(row) for row in ours.tokens.tolist()}) == 4  # the rows are not one repeated answer


def test_stop_ids_and_minimum_length_equal_transformers(model, params, programs, llama):
    prompts = prompts_of(7, 1, 12, 5)
    free = theirs(llama, prompts, max_new_tokens=20, eos_token_id=None)
    stops = (int(free[0, 2]), int(free[1, 6]))
    for minimum in (0, 5):
        kwargs = {"min_new_tokens": minimum} if minimum else {}
        expected = theirs(llama, prompts, max_new_tokens=20, eos_token_id=list(stops), **kwargs)
        options = GenerateOptions(max_new_tokens=20, min_new_tokens=minimum, stop_ids=stops, pad_id=PAD)
        ours = generate(model, params, text_batch(prompts, side="right"), options, programs)
        width = expected.shape[1]
        np.testing.assert_array_equal(ours.tokens[:, :width], expected)
        assert (ours.tokens[:, width:] == PAD).all()
        for row, length in zip(ours.tokens, ours.lengths, strict=True):
            stopped = np.isin(row[:length], stops)
            assert stopped[:-1].sum() == 0 and (stopped[-1] or length == 20) and length >= minimum


def test_repetition_penalty_equals_transformers(model, params, programs, llama):
    prompts = prompts_of(9, 9, seed=3)  # without padding, whose id transformers would count as seen
    expected = theirs(llama, prompts, max_new_tokens=16, eos_token_id=None, repetition_penalty=1.6)
    options = GenerateOptions(max_new_tokens=16, repetition_penalty=1.6)
    ours = generate(model, params, text_batch(prompts), options, programs)
    np.testing.assert_array_equal(ours.tokens, expected)


def by_full_forwards(model, params, prompt, count, media=None, media_index=()) -> list[int]:
    """Greedy generation without a cache: one whole forward a token."""
    forward, length = jax.jit(model.__call__), 32
    index = np.full((1, length), -1, np.int32)
    index[0, : len(media_index)] = media_index
    tokens = list(prompt)
    for _ in range(count):
        text = stream([tokens], side="right", length=length).replace(media_index=index)
        logits = forward(params, Batch({"text": text}, media or {})).logits
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


def test_prefill_and_decode_equal_full_forwards(model, params, programs):
    prompts = prompts_of(3, 10, seed=5)
    ours = generate(model, params, text_batch(prompts), GenerateOptions(max_new_tokens=9), programs)
    for row, prompt in enumerate(prompts):
        assert ours.tokens[row].tolist() == by_full_forwards(model, params, prompt, 9)


@pytest.mark.slow
def test_stacked_and_unstacked_parameters_generate_the_same(model, params, programs):
    batch, options = text_batch(prompts_of(4, 6)), GenerateOptions(max_new_tokens=8)
    expected = generate(model, params, batch, options, programs).tokens
    np.testing.assert_array_equal(generate(model, unstack(params), batch, options).tokens, expected)
    scanned = Programs(model, unstack=False)
    np.testing.assert_array_equal(generate(model, params, batch, options, scanned).tokens, expected)
    assert scanned.view(params) is params


def test_the_unstacked_view_is_made_once_per_tree(model, params):
    programs = Programs(model)
    view = programs.view(params)
    assert programs.view({**params}) is view  # the same leaves
    assert programs.view(view) is view
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    assert programs.view(other) is not view


def test_a_batch_of_one_and_one_token(model, params, programs):
    ours = generate(model, params, text_batch(prompts_of(1)), GenerateOptions(max_new_tokens=1), programs)
    assert ours.tokens.shape == (1, 1) and ours.lengths.tolist() == [1]


def test_streaming_gives_the_tokens_of_one_go(model, params, programs):
    prompts = prompts_of(7, 2, 12)
    free = generate(model, params, text_batch(prompts), GenerateOptions(max_new_tokens=20), programs)
    options = GenerateOptions(max_new_tokens=20, stop_ids=(int(free.tokens[1, 8]),), pad_id=PAD)
    whole = generate(model, params, text_batch(prompts), options, programs)
    before = dict(programs.compilations)
    for every in (1, 3):
        pieces, counts = [], np.zeros(3, int)

        def receive(tokens, count, pieces=pieces, counts=counts):
            pieces.append(tokens)
            counts += count

        streamed = generate(model, params, text_batch(prompts), options, programs, receive, every)
        np.testing.assert_array_equal(streamed.tokens, whole.tokens)
        joined = np.concatenate(pieces, axis=1)
        np.testing.assert_array_equal(joined, whole.tokens[:, : joined.shape[1]])
        np.testing.assert_array_equal(counts, whole.lengths)
        assert pieces[0].shape == (3, 1) and all(piece.shape[1] <= every for piece in pieces)
    assert programs.compilations == before


def test_streaming_ends_when_every_row_is_done(model, params, programs):
    prompts = prompts_of(7)
    first = generate(model, params, text_batch(prompts), GenerateOptions(max_new_tokens=1), programs).tokens[0, 0]
    pieces = []
    options = GenerateOptions(max_new_tokens=20, stop_ids=(int(first),))
    out = generate(model, params, text_batch(prompts), options, programs, lambda t, n: pieces.append(t.tolist()))
    assert pieces == [[[int(first)]]] and out.lengths.tolist() == [1]


def test_nothing_recompiles_within_a_bucket(model, params):
    programs = Programs(model)
    for length, new in ((9, 9), (16, 16), (11, 14)):
        for changes in ({}, {"stop_ids": (1, 2, 3)}, {"stop_ids": (4,), "pad_id": 3}):
            prompts = prompts_of(length, length - 2)
            generate(model, params, text_batch(prompts), GenerateOptions(new, **changes), programs)
    assert programs.compilations == {"prefill": 1, "decode": 1}
    for temperature, top_p, seed in ((0.5, 0.9, 1), (1.5, 0.8, 2)):
        options = GenerateOptions(8, do_sample=True, temperature=temperature, top_p=top_p, seed=seed)
        generate(model, params, text_batch(prompts), options, programs)
    assert programs.compilations == {"prefill": 2, "decode": 2}


@pytest.mark.slow
def test_a_row_draws_the_same_in_any_batch(model, params, programs):
    prompts = prompts_of(7, 4, 12)
    options = GenerateOptions(max_new_tokens=10, do_sample=True, temperature=2.0, top_k=50, top_p=0.95, seed=5)
    together = generate(model, params, text_batch(prompts), options, programs).tokens
    alone = generate(model, params, text_batch(prompts[:1]), options, programs).tokens
    np.testing.assert_array_equal(alone[0], together[0])
    order = [2, 0, 1]
    batch = text_batch([prompts[i] for i in order], side="right")
    shuffled = generate(model, params, batch, options, programs, rows=np.array(order)).tokens
    np.testing.assert_array_equal(shuffled, together[order])
    other_seed = dataclasses.replace(options, seed=6)
    assert (generate(model, params, text_batch(prompts), other_seed, programs).tokens != together).any()


@pytest.mark.slow
def test_bfloat16_generates_and_keeps_its_cache_in_bfloat16(params):
    model = MultimodalLM(MultimodalLMConfig(LLAMA), dtype="bfloat16")
    programs = Programs(model)
    batch, options = text_batch(prompts_of(5, 9)), GenerateOptions(max_new_tokens=6)
    text = batch.text
    state = programs.prefill(programs.view(params), text, {}, None, options)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.cache)} == {jnp.dtype("bfloat16")}
    left = generate(model, params, batch, options, programs)
    right = generate(model, params, text_batch(prompts_of(5, 9), side="right"), options, programs)
    assert left.tokens.shape == (2, 6)
    np.testing.assert_array_equal(left.tokens[:, 0], right.tokens[:, 0])


def test_the_state_is_donated_not_copied(model, params, programs):
    options = GenerateOptions(max_new_tokens=4)
    state = programs.prefill(programs.view(params), stream(prompts_of(16)), {}, None, options)
    old = state.cache[0][0]
    programs.decode(programs.view(params), state, options)
    assert old.is_deleted()


@pytest.mark.slow
def test_a_mesh_gives_the_tokens_of_one_device_and_keeps_the_layers_split(params):
    config = dataclasses.replace(LLAMA, vocab_size=96)
    model = MultimodalLM(MultimodalLMConfig(config))
    backbone = dict(params["backbone"], embed={"embedding": params["backbone"]["embed"]["embedding"][:96]})
    backbone["lm_head"] = {"kernel": params["backbone"]["lm_head"]["kernel"][:, :96]}
    whole = {"backbone": backbone}
    batch = text_batch([[token % 96 for token in prompt] for prompt in prompts_of(7, 2, 12, 5)], side="right")
    greedy = GenerateOptions(max_new_tokens=12)
    drawn = GenerateOptions(max_new_tokens=12, do_sample=True, temperature=2.0, top_p=0.9, seed=3)
    expected = [generate(model, whole, batch, options).tokens for options in (greedy, drawn)]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = jax.device_put(whole, shardings(model.param_axes(), mesh))
    with jax.set_mesh(mesh):
        programs = Programs(model)
        for options, tokens in zip((greedy, drawn), expected, strict=True):
            np.testing.assert_array_equal(generate(model, split, batch, options, programs).tokens, tokens)
        kernel = programs.view(split)["backbone"]["blocks"][0]["mlp"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (42 // 2, 56 // 2)
        state = programs.prefill(programs.view(split), batch.text, {}, None, greedy)
        key = state.cache[0][0]
        assert key.addressable_shards[0].data.size == key.size // 8  # rows over data and fsdp, heads over tensor
        assert state.tokens.is_fully_replicated


# Images

VISION = ViTConfig(image_size=12, patch_size=6, width=24, num_layers=2, num_heads=3, mlp_width=40)


@pytest.fixture(scope="module")
def seeing():
    config = MultimodalLMConfig(
        LLAMA,
        {"image": VISION},
        {"image": MLPProjectorConfig(VISION.feature_width, 32, LLAMA.width)},
        {"image": 96},
    )
    model = MultimodalLM(config)
    return model, random_params(model)


def test_several_images_a_row_equal_full_forwards(seeing):
    model, params = seeing
    each = model.num_tokens("image")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 2, 12, 12, 3)).astype(np.float32)
    media = {"image": Media(images, segment_ids=np.array([[1, 2], [1, 0]], np.int32))}
    first = [5, *[96] * each, 7, 8, *[96] * each, 9]
    second = [*[96] * each, 11]
    index = np.full((2, len(first)), -1, np.int32)
    index[0, 1 : 1 + each] = np.arange(each)
    index[0, 3 + each : 3 + 2 * each] = each + np.arange(each)
    index[1, :each] = np.arange(each)
    text = stream([first, second], side="right").replace(media_index=index)
    programs = Programs(model)
    options = GenerateOptions(max_new_tokens=7)
    ours = generate(model, params, Batch({"text": text}, media), options, programs).tokens
    for row, (prompt, count) in enumerate(((first, 2), (second, 1))):
        own = {"image": Media(images[row : row + 1, :count], np.arange(1, count + 1, dtype=np.int32)[None])}
        expected = by_full_forwards(model, params, prompt, 7, own, index[row, : len(prompt)])
        assert ours[row].tolist() == expected
    swapped = {"image": media["image"].replace(values=images[:, ::-1])}
    other = generate(model, params, Batch({"text": text}, swapped), options, programs).tokens
    assert (other != ours).any()
    assert programs.compilations == {"encode": 1, "prefill": 1, "decode": 1}


@pytest.mark.slow
def test_rows_that_share_media_and_media_encoded_beforehand(seeing):
    model, params = seeing
    each = model.num_tokens("image")
    images = np.random.default_rng(1).normal(size=(1, 1, 12, 12, 3)).astype(np.float32)
    prompts = [[*[96] * each, 3, 4], [*[96] * each, 9, 2]]
    index = np.tile(np.r_[np.arange(each), -1, -1].astype(np.int32), (2, 1))
    text = stream(prompts).replace(media_index=index)
    options = GenerateOptions(max_new_tokens=5)
    twice = {"image": Media(np.repeat(images, 2, axis=0))}
    expected = generate(model, params, Batch({"text": text}, twice), options).tokens
    once = {"image": Media(images)}
    owner = np.zeros(2, np.int32)
    shared = generate(model, params, Batch({"text": text}, once, media_owner=owner), options).tokens
    np.testing.assert_array_equal(shared, expected)
    encoded = model.encode_media(params, once)
    ready = generate(model, params, Batch({"text": text}, encoded, media_owner=owner), options).tokens
    np.testing.assert_array_equal(ready, expected)


# What is refused, before anything compiles


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": -3}, "got -3"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "between 0 and max_new_tokens 8, got 9"),
        ({"temperature": 0.0}, "do_sample=False"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.2}, "top_p must lie above 0 and at most at 1, got 1.2"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        GenerateOptions(**changes)


def refused(model, params, batch, options, *words):
    programs = Programs(model)
    with pytest.raises(ValueError) as error:
        generate(model, params, batch, options, programs)
    assert all(word in str(error.value) for word in words), error.value
    assert not programs.compilations


def test_requests_that_cannot_work_are_refused_before_anything_compiles(model, params):
    options = GenerateOptions(max_new_tokens=8)
    refused(model, params, text_batch([[3, 4], []]), options, "row 1", "empty prompt")
    refused(model, params, text_batch(prompts_of(4, 125)), options, "125", "8", "133", "128", "at most 3")
    refused(model, params, text_batch([[3, 97]]), options, "token 97", "vocabulary of 97")
    packed = stream([[3, 4, 5, 6]]).replace(segment_ids=np.array([[1, 1, 2, 2]], np.int32))
    refused(model, params, Batch({"text": packed}), options, "several texts", "segment_ids")
    groups = stream([[3, 4, 5, 6]]).replace(attend_group=np.array([[0, 1, 1, 2]], np.int32))
    refused(model, params, Batch({"text": groups}), options, "several texts", "attend_group")
    refused(model, params, Batch({"query": packed}), options, '"text"', "query")
    refused(model, params, text_batch([[3]]), GenerateOptions(8, stop_ids=(97,)), "stop_ids", "97")
    with pytest.raises(ValueError, match="another model"):
        generate(model, params, text_batch([[3]]), options, Programs(dataclasses.replace(model, dtype="bfloat16")))


def test_a_prompt_that_just_fits_is_taken(model, params, programs):
    ours = generate(model, params, text_batch(prompts_of(120)), GenerateOptions(max_new_tokens=8), programs)
    assert ours.tokens.shape == (1, 8)


def test_program_length_adds_little_and_is_a_fixed_point():
    for length in range(1, 3000):
        rounded = program_length(length)
        assert length <= rounded < length + max(length / 16, 8) and program_length(rounded) == rounded
