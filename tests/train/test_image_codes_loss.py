"""Images as codes that a model learns to write: loss and gradients beside torch's, and one image learned by heart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.contracts import Batch, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh, put_batch
from mmjax.distributed.rules import shardings
from mmjax.generators.image_codes import ImageCodesConfig
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.infer.generate import GenerateOptions
from mmjax.infer.image_codes import WriteOptions, generate_images
from mmjax.interop.huggingface import chameleon as chameleon_names
from mmjax.interop.huggingface import emu3 as emu3_names
from mmjax.interop.huggingface import janus as janus_names
from mmjax.interop.huggingface import load
from mmjax.interop.table import export_params
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten, unflatten
from mmjax.train.losses import next_token_loss
from mmjax.train.stage import StageConfig, split
from mmjax.train.step import init_state, make_train_step, state_shardings

PLACEHOLDER, BEGIN, ROW_END, FRAME_END, END, STOP = 80, 81, 82, 83, 84, 2
LLM = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=96, pad_token_id=0, bos_token_id=1, eos_token_id=STOP,
)  # fmt: skip


def emu3():
    words = {
        "<image>": PLACEHOLDER, "<|image token|>": BEGIN, "<|extra_200|>": ROW_END, "<|extra_201|>": FRAME_END,
        "<|image end|>": END, **{f"<|visual token {code:06d}|>": 40 + code for code in range(17)},
    }  # fmt: skip
    codes = dict(
        base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, attn_resolutions=[1], hidden_size=64,
        num_attention_heads=1, codebook_size=17, embed_dim=4, latent_channels=4, temporal_downsample_factor=2,
    )  # fmt: skip
    config = transformers.Emu3Config(vq_config=codes, text_config=LLM | {"vocab_size": 87}, vocabulary_map=words)
    return transformers.Emu3ForConditionalGeneration(config)


def chameleon():
    words = {"<image>": PLACEHOLDER, "<racm3:break>": BEGIN, "<eoss>": END}
    words |= {f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z": 40 + code for code in range(23)}
    codes = dict(
        base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, embed_dim=4, num_embeddings=23,
        latent_channels=7, resolution=6, attn_resolutions=None,
    )  # fmt: skip
    config = transformers.ChameleonConfig(vq_config=codes, vocabulary_map=words, vocab_size=87, **LLM)
    return transformers.ChameleonForConditionalGeneration(config)


def janus():
    vision = dict(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, mlp_ratio=2.0, image_size=9, patch_size=3,
        projection_dim=32, num_image_tokens=9,
    )  # fmt: skip
    codes = dict(
        base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, embed_dim=5, num_embeddings=19,
        latent_channels=6, projection_dim=32, image_token_embed_dim=32,
    )  # fmt: skip
    text = LLM | {"model_type": "llama", "vocab_size": 83}
    config = transformers.JanusConfig(
        vision_config=vision, vq_config=codes, text_config=text, image_token_id=PLACEHOLDER
    )
    config.tie_word_embeddings = False
    return transformers.JanusForConditionalGeneration(config)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """kind -> theirs with random weights, and ours with the same; made when they are asked for."""
    made = {}

    def of(kind):
        if kind not in made:
            torch.manual_seed(0)
            theirs = {"emu3": emu3, "chameleon": chameleon, "janus": janus}[kind]().eval()
            generator = torch.Generator().manual_seed(4)
            with torch.no_grad():
                for name, parameter in theirs.named_parameters():
                    scale = "norm" in name and name.endswith("weight")
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float(scale))
            place = tmp_path_factory.mktemp(kind)
            theirs.save_pretrained(place)
            loaded = load(place)
            made[kind] = theirs, MultimodalLM(loaded.config), loaded.params
        return made[kind]

    return of


def example(model, grid):
    """Two rows with two images and one, the last in a turn that is not learned; blanks and what they are made of."""
    random, codes = np.random.default_rng(1), model.config.codes
    row = [codes.blank] * grid[1] + ([] if codes.row_end is None else [codes.row_end])
    image = [BEGIN, *row * grid[0], *codes.tail]
    text = lambda count: random.integers(3, 39, count).tolist()
    rows = [[1, *text(3), *image, *text(2), *image], [1, *text(2), *image, *text(6)]]
    learned = [[0] * 4 + [1] * (len(rows[0]) - 4), [0] * (3 + len(image)) + [1] * 6]
    length = max(map(len, rows))
    pad = lambda values: np.array([[*line, *[0] * (length - len(line))] for line in values])
    tokens, segments = pad(rows).astype(np.int32), pad([[1] * len(line) for line in rows]).astype(np.int32)
    side = codes.maps.downsampling
    images = random.normal(size=(2, 2, grid[0] * side, grid[1] * side, 3)).astype(np.float32)
    positions = (np.cumsum(segments, axis=1) - 1).astype(np.int32) * segments
    stream = TextStream(tokens, positions, segments, loss_weights=pad(learned).astype(np.float32))
    targets = {codes.port: {"media": images, "weights": np.array([[1, 1], [1, 0]], np.float32)}}
    return Batch({"text": stream}, targets=targets)


def their_tokens(theirs, images, first):
    """Token ids of images [n, H, W, 3], ends of rows left out, int [n, h * w]."""
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if isinstance(theirs, transformers.Emu3ForConditionalGeneration):
            ids = theirs.model.get_image_tokens(pixels, torch.tensor([images.shape[1:3]] * len(images)))
            ids = ids[ids != ROW_END]
        elif isinstance(theirs, transformers.JanusForConditionalGeneration):
            ids = first + theirs.model.vqmodel.encode(pixels).image_tokens
        else:
            ids = theirs.model.get_image_tokens(pixels)
    return ids.reshape(len(images), -1).numpy()


def their_loss(theirs, batch, tokens):
    """The mean next-token loss, of `tokens` [B, T] with the codes filled in."""
    text, learned = batch.text, torch.tensor(batch.text.loss_weights > 0)
    given, mask = torch.tensor(tokens).long(), torch.tensor(text.segment_ids)
    labels = torch.where(learned, given, -100)
    if isinstance(theirs, transformers.Emu3ForConditionalGeneration):
        # The pixels, as its processor hands them over.
        (images,) = batch.targets.values()
        pixels = torch.tensor(images["media"][images["weights"] > 0].transpose(0, 3, 1, 2))
        of_image = (given >= 40) & (given < 57) | (given == ROW_END)
        return theirs(
            input_ids=torch.where(of_image, PLACEHOLDER, given), attention_mask=mask, pixel_values=pixels,
            image_sizes=torch.tensor([pixels.shape[2:]] * len(pixels)), labels=labels,
        ).loss  # fmt: skip
    entropy = torch.nn.functional.cross_entropy
    if isinstance(theirs, transformers.ChameleonForConditionalGeneration):
        # Its class sets the logits of codes to nothing before it takes a loss.
        hidden = theirs.model(input_ids=given, attention_mask=mask).last_hidden_state
        return entropy(theirs.lm_head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    # Wu et al., 2024: the LLM's output layer says words, the other one codes; theirs has no loss of codes.
    first, llm = theirs.config.text_config.vocab_size, theirs.model.language_model
    drawn = theirs.prepare_embeddings_for_image_generation((given - first).clamp(min=0))
    words = llm.get_input_embeddings()(given.clamp(max=first - 1))
    embeddings = torch.where((given >= first)[..., None], drawn, words)
    hidden = llm(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state[:, :-1]
    wanted, learned = given[:, 1:], learned[:, 1:]
    is_code = wanted >= first
    losses = [
        entropy(theirs.lm_head(hidden)[learned & ~is_code], wanted[learned & ~is_code], reduction="sum"),
        entropy(theirs.model.generation_head(hidden)[learned & is_code], (wanted - first)[learned & is_code],
                reduction="sum"),
    ]  # fmt: skip
    return sum(losses) / learned.sum()


LEAVES = ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "layers.1.mlp.down_proj.weight", "lm_head.weight")
OWN = ("generation_embeddings.weight", "generation_aligner.fc1.weight", "generation_head.vision_head.weight")


def ending(names, end):
    """The one of the LLM's names that ends so."""
    (found,) = (name for name in names if name.endswith(end) and "vision_model" not in name)
    return found


@pytest.mark.parametrize("kind", ["emu3", pytest.param("chameleon", marks=pytest.mark.slow), "janus"])
def test_loss_and_gradients_are_those_of_torch(pairs, kind):
    theirs, model, params = pairs(kind)
    names = {"emu3": emu3_names, "chameleon": chameleon_names, "janus": janus_names}[kind]
    grid = (2, 3) if kind == "emu3" else (3, 3)
    batch = example(model, grid)
    leaves = flatten(params)
    frozen = {path: leaf for path, leaf in leaves.items() if "autoencoder" in path or path.startswith("encoders")}
    trained = {path: leaf for path, leaf in leaves.items() if path not in frozen}

    def mean(trained, frozen):
        params = unflatten(trained, frozen)
        filled = model.with_codes(params, batch)
        assert filled.targets is None
        total, aux = next_token_loss(model, params, filled)
        return total / aux["weight"], filled.text.tokens

    lowered = jax.jit(jax.value_and_grad(mean, has_aux=True)).lower(trained, frozen)
    (loss, tokens), grads = lowered.compile({"xla_backend_optimization_level": 0})(trained, frozen)
    blank, tokens = batch.text.tokens == model.config.codes.blank, np.asarray(tokens)
    images = batch.targets[model.config.codes.port]["media"]
    wanted = their_tokens(theirs, images.reshape(-1, *images.shape[2:]), model.config.codes.first)
    # Of the fourth image there are no blanks: it is padding.
    np.testing.assert_array_equal(tokens[blank], wanted[:3].reshape(-1))
    assert len(np.unique(wanted)) > 3 and (tokens[~blank] == batch.text.tokens[~blank]).all()
    reference = their_loss(theirs, batch, tokens)
    theirs.zero_grad()
    reference.backward()
    assert float(loss) == pytest.approx(float(reference.detach()), rel=5e-5)
    mine = dict(export_params(names.FAMILY.table(model.config), unflatten(grads, jax.tree.map(np.zeros_like, frozen))))
    found = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for end in LEAVES + OWN * (kind == "janus"):
        one, other = np.asarray(mine[ending(mine, end)]), found[ending(found, end)].numpy()
        assert np.abs(other).max() > 1e-5
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max(), err_msg=end)


AUTOENCODER = VQAutoencoderConfig(
    codes=7, latent_channels=3, widths=(8, 8), blocks=1, groups=4, inner_channels=4, middle_attention=False
)


@pytest.mark.parametrize("own", [False, True])
def test_one_image_is_learned_by_heart_and_written(own):
    backbone = DecoderConfig(90, 24, 1, 2, 2, 12, 32, max_positions=32)
    where = {"first": 90, "own": True} if own else {"first": 40, "tail": (END, STOP), "row_end": ROW_END}
    codes = ImageCodesConfig(AUTOENCODER, 24, (2, 3), begin=BEGIN, placeholder=None if own else PLACEHOLDER, **where)
    model, random = MultimodalLM(MultimodalLMConfig(backbone, codes=codes)), np.random.default_rng(0)
    leaves = {
        path: jnp.asarray(random.normal(float(path.endswith("scale")), 0.3, leaf.shape), jnp.float32)
        for path, leaf in flatten(model.param_shapes()).items()
    }
    frozen = {path: leaf for path, leaf in leaves.items() if "autoencoder" in path}
    trained = {path: leaf for path, leaf in leaves.items() if path not in frozen}
    row = [codes.blank] * 3 + ([] if own else [ROW_END])
    tokens = np.array([[1, 5, 6, BEGIN, *row * 2, *codes.tail]], np.int32)
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    text = TextStream(tokens, positions, np.ones_like(tokens), loss_weights=(positions > 3).astype(np.float32))
    image = random.normal(size=(1, 1, 4, 6, 3)).astype(np.float32)
    batch = Batch({"text": text}, targets={"image": {"media": image, "weights": np.ones((1, 1), np.float32)}})
    optimizer = optax.adam(2e-2)

    def mean(trained):
        total, aux = next_token_loss(model, unflatten(trained, frozen), batch)
        return total / aux["weight"]

    @jax.jit
    def learn(trained):
        def step(carry, _):
            trained, state = carry
            loss, grads = jax.value_and_grad(mean)(trained)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(trained, updates), state), loss

        (trained, _), losses = jax.lax.scan(step, (trained, optimizer.init(trained)), None, length=80)
        return trained, losses

    trained, losses = learn(trained)
    assert losses[-1] < 0.02 < 1 < losses[0]
    prompt = TextStream(tokens[:, :4], positions[:, :4], np.ones((1, 4), np.int32))
    params = unflatten(trained, frozen)
    options = GenerateOptions(max_new_tokens=codes.length(), stop_ids=(STOP,))
    out, made = generate_images(model, params, Batch({"text": prompt}), options, WriteOptions("interleaved"))
    wanted = np.asarray(model.codes(params, "encode", image[0]))[0]
    assert len(np.unique(wanted)) > 2
    np.testing.assert_array_equal(made.codes[0][0], wanted)
    assert out.lengths[0] == codes.length()


def test_prompts_with_images_are_read_as_codes():
    """A prompt whose images are blanks says what the same prompt with their codes says."""
    backbone = DecoderConfig(90, 24, 1, 2, 2, 12, 32, max_positions=32)
    codes = ImageCodesConfig(AUTOENCODER, 24, (2, 3), first=40, begin=BEGIN, placeholder=PLACEHOLDER)
    model, random = MultimodalLM(MultimodalLMConfig(backbone, codes=codes)), np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32)
    params = jax.tree.map(draw, model.param_shapes())
    tokens = np.array([[1, BEGIN, *[PLACEHOLDER] * 6, 5, 6]], np.int32)
    stream = lambda ids: TextStream(ids, np.arange(10, dtype=np.int32)[None], np.ones_like(ids))
    image = random.normal(size=(1, 1, 4, 6, 3)).astype(np.float32)
    found = np.asarray(model.codes(params, "encode", image[0])).reshape(-1)
    known = np.array([[1, BEGIN, *(40 + found), 5, 6]], np.int32)
    options = GenerateOptions(max_new_tokens=4)
    batch = Batch({"text": stream(tokens)}, targets={"image": {"media": image}})
    out, _ = generate_images(model, params, batch, options, WriteOptions("interleaved"))
    wanted, _ = generate_images(model, params, Batch({"text": stream(known)}), options, WriteOptions("interleaved"))
    np.testing.assert_array_equal(out.tokens, wanted.tokens)
    other, _ = generate_images(model, params, Batch({"text": stream(tokens)}), options, WriteOptions("interleaved"))
    assert (other.tokens != wanted.tokens).any()


@pytest.mark.slow
def test_a_mesh_gives_the_loss_and_every_gradient_of_one_device():
    autoencoder = dataclasses.replace(AUTOENCODER, codes=8)
    codes = ImageCodesConfig(autoencoder, 32, (2, 3), first=64, own=True, port="image_out")
    model = MultimodalLM(MultimodalLMConfig(DecoderConfig(64, 32, 2, 4, 2, 8, 48, max_positions=32), codes=codes))
    trained = ("backbone/.*", "codes/(embedding|(in|out)_fc[12]/.*)")
    stage = StageConfig("all", 1, 8, trainable=tuple((path, "train") for path in trained), accumulate=2)
    random = np.random.default_rng(0)
    tokens = random.integers(0, 64, (8, 16)).astype(np.int32)
    tokens[:, 6:12] = codes.blank
    tokens[3, 6:12] = 5  # a row without an image
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape).copy()
    text = TextStream(tokens, positions, np.ones_like(tokens), loss_weights=(positions > 4).astype(np.float32))
    images = random.normal(size=(8, 1, 4, 6, 3)).astype(np.float32)
    batch = Batch({"text": text}, targets={"image_out": {"media": images, "weights": np.ones((8, 1), np.float32)}})
    leaves = {
        path: (path.endswith("/scale") + random.normal(0, 0.2, leaf.shape)).astype(np.float32)
        for path, leaf in flatten(model.param_shapes()).items()
    }

    def step_on(axes):
        mesh = make_mesh(MeshConfig(**axes), jax.devices()[: 4 if axes else 1])
        places = shardings(flatten(model.param_axes()), mesh)
        trainable, frozen = split(unflatten(leaves), stage)
        # Plain gradient descent with rate 1 moves each parameter by its gradient: updates compare gradients.
        optimizer = optax.sgd(1.0)
        layout = state_shardings(trainable, optimizer, places)
        state = init_state(trainable, optimizer, layout)
        frozen = {path: jax.device_put(leaf, places[path]) for path, leaf in frozen.items()}
        step = make_train_step(model, stage, optimizer, mesh, layout)
        state, metrics = step(state, frozen, put_batch(batch, mesh))
        return jax.device_get(state.trainable), float(metrics["loss"])

    (alone, wanted), (shared, found) = step_on({}), step_on({"data": 2, "fsdp": 2, "tensor": 1})
    assert found == pytest.approx(wanted, rel=1e-5) and "codes/out_fc2/kernel" in alone
    for path, leaf in alone.items():
        assert np.abs(leaf - leaves[path]).max() > 1e-6, path
        np.testing.assert_allclose(shared[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)
