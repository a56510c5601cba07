"""A P-Former and what is drawn to it: BERT, Llama and torch's losses beside them, gradients included."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.generators.decision import DecisionConfig
from mmjax.interop.huggingface import load
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.output_projectors import LinearOutputConfig
from mmjax.paths import flatten, unflatten
from mmjax.projectors.prompted import PromptedConfig
from mmjax.projectors.prompter import PrompterConfig
from mmjax.projectors.qformer import QFormerConfig
from mmjax.train.losses import next_token_loss
from mmjax.train.prompt_loss import PromptLoss, align_mean, contrast_mean, prompted_text
from mmjax.train.signal_loss import loss_of

WORDS, LLM_WIDTH, QUERIES, LONGEST = 31, 24, 3, 6
PROMPTER = PrompterConfig(WORDS, QUERIES, 20, 3, 5, 26, LONGEST, contrast_width=7)
READER = QFormerConfig(12, LLM_WIDTH, QUERIES, 12, 2, 2, 14, num_features=4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=LLM_WIDTH, intermediate_size=28, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model, directory = transformers.LlamaForCausalLM(config).eval(), tmp_path_factory.mktemp("llama")
    model.save_pretrained(directory)
    return model, directory


@pytest.fixture(scope="module")
def system(llama):
    """The model, and params of which all but the LLM's are drawn at random."""
    loaded = load(llama[1])
    model = MultimodalLM(
        MultimodalLMConfig(
            loaded.config.backbone,
            {"image": ViTConfig(8, 4, 12, 1, 3, 14, feature_strategy="patches")},
            {"image": PromptedConfig(READER, PROMPTER)},
            {"image": WORDS - 1},
        )
    )
    random = np.random.default_rng(1)
    drawn = {
        path: np.asarray(path.endswith("/scale") + 0.3 * random.normal(size=shape.shape), np.float32)
        for path, shape in flatten(model.param_shapes()).items()
    }
    drawn["projectors/image/prompter/temperature"] = np.float32(0.4)
    return model, jax.tree.map(jnp.asarray, unflatten({**drawn, **flatten(loaded.params)}))


def texts(lengths, images=None, width=11):
    """Rows of [image], a begin token that is no target, a caption, padding."""
    random = np.random.default_rng(2)
    tokens, segments = np.zeros((len(lengths), width), np.int32), np.zeros((len(lengths), width), np.int32)
    index, weights = np.full(tokens.shape, -1, np.int32), np.zeros(tokens.shape, np.float32)
    for row, (length, image) in enumerate(zip(lengths, images or [False] * len(lengths), strict=True)):
        start = QUERIES if image else 0
        index[row, :start] = np.arange(start)
        tokens[row, :start], tokens[row, start] = WORDS - 1, 1
        tokens[row, start + 1 : start + 1 + length] = random.integers(2, WORDS - 2, length)
        weights[row, start + 1 : start + 1 + length] = 1
        segments[row, : start + 1 + length] = 1 if length else 0
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    return TextStream(tokens, positions, segments, weights, index)


class Bert(torch.nn.Module):
    """The paper's P-Former as its authors put it together, with our weights."""

    def __init__(self, params):
        super().__init__()
        own = {path: torch.tensor(np.asarray(leaf)) for path, leaf in flatten(params).items()}
        c = PROMPTER
        self.bert = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=WORDS + 2, hidden_size=c.query_width, num_hidden_layers=c.num_layers,
                num_attention_heads=c.num_heads, intermediate_size=c.mlp_width, max_position_embeddings=1 + LONGEST,
            ), add_pooling_layer=False,
        ).eval()  # fmt: skip
        state = {
            "embeddings.word_embeddings.weight": torch.cat([own["embedding"], own["marks"]]),
            "embeddings.position_embeddings.weight": own["position_embedding"],
            "embeddings.token_type_embeddings.weight": torch.zeros(2, c.query_width),
            "embeddings.LayerNorm.weight": own["norm/scale"],
            "embeddings.LayerNorm.bias": own["norm/bias"],
        }
        maps = {
            "attn/q": "attention.self.query", "attn/k": "attention.self.key", "attn/v": "attention.self.value",
            "attn/o": "attention.output.dense", "mlp/up": "intermediate.dense", "mlp/down": "output.dense",
        }  # fmt: skip
        for layer in range(c.num_layers):
            for ours, theirs in maps.items():
                kernel, bias = own[f"blocks/{ours}/kernel"][layer], own[f"blocks/{ours}/bias"][layer].reshape(-1)
                state[f"encoder.layer.{layer}.{theirs}.weight"] = kernel.reshape(-1, len(bias)).T
                state[f"encoder.layer.{layer}.{theirs}.bias"] = bias
            for ours, theirs in (("attn_norm", "attention.output"), ("mlp_norm", "output")):
                for mine, name in (("scale", "weight"), ("bias", "bias")):
                    leaf = own[f"blocks/{ours}/{mine}"][layer]
                    state[f"encoder.layer.{layer}.{theirs}.LayerNorm.{name}"] = leaf
        self.bert.load_state_dict(state)
        for name in ("prompts", "pool", "out", "contrast"):
            kernel = own[f"{name}/kernel"]
            made = torch.nn.Linear(*kernel.shape)
            made.load_state_dict({"weight": kernel.T, "bias": own[f"{name}/bias"]})
            setattr(self, name, made)
        self.temperature = torch.nn.Parameter(own["temperature"].clone())

    def forward(self, tokens, mask):
        first = torch.full((len(tokens), 1), WORDS)
        mask = torch.cat([torch.ones_like(first), mask], dim=1)
        x = self.bert(torch.cat([first, tokens], dim=1), attention_mask=mask).last_hidden_state[:, 0]
        prompts = self.prompts(x).reshape(len(x), QUERIES, -1)
        return self.out(torch.tanh(self.pool(prompts))), torch.nn.functional.normalize(self.contrast(x), dim=-1)


def captions_of(text):
    """Tokens [B, LONGEST] of what is said, and which are no padding."""
    tokens = np.zeros((len(text.tokens), LONGEST), np.int64)
    for row, (said, weights) in enumerate(zip(text.tokens, text.loss_weights, strict=True)):
        said = said[weights > 0][:LONGEST]
        tokens[row, : len(said)] = said
    return torch.tensor(tokens), torch.tensor((tokens > 0).astype(np.int64))


def reference(llama, bert, text):
    """Every mean of the first stage as torch has it: LLM behind the prompt, smoothed contrast, nearest words."""
    caption, mask = captions_of(text)
    prompts, vectors = bert(caption, mask)
    there = torch.tensor(text.segment_ids).sum(1) > 0
    kept = (torch.tensor(text.segment_ids) > 0) & (torch.tensor(text.media_index) < 0)
    losses, table = [], llama.get_input_embeddings().weight
    for row in torch.nonzero(there)[:, 0]:
        words = torch.tensor(text.tokens)[row][kept[row]].long()
        labels = torch.where(torch.tensor(text.loss_weights)[row][kept[row]] > 0, words, -100)
        embedded = torch.cat([prompts[row], table[words]])[None]
        logits = llama(inputs_embeds=embedded).logits[0, QUERIES - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none"))
    count = int((torch.tensor(text.loss_weights) > 0).sum())
    vectors, prompts = vectors[there], prompts[there].reshape(-1, LLM_WIDTH)
    logits = vectors @ vectors.T / bert.temperature
    contrast = torch.nn.functional.cross_entropy(logits, torch.arange(len(vectors)), label_smoothing=0.1)
    nearest = table[torch.cdist(prompts, table).argmin(1)].detach()
    return torch.cat(losses).sum() / count, contrast, torch.nn.functional.mse_loss(prompts, nearest)


def test_captions_teach_prompts_as_in_torch(llama, system, tools_close):
    model, params = system
    # The last row is padding, the second caption is longer than what is read, the third stands behind an image.
    text = texts([4, 7, 5, 0], (False, False, True, False))
    batch = Batch({"text": text}, {"image": Media(np.zeros((4, 1, 8, 8, 3), np.float32))})
    weights = {"contrast": 0.7, "vocabulary": 1.3}

    @jax.jit
    def run(params, batch):
        def mean(own):
            tree = {**params, "projectors": {"image": {**params["projectors"]["image"], "prompter": own}}}
            total, aux = PromptLoss(**weights)(model, tree, batch)
            return total / aux["weight"], aux

        return jax.value_and_grad(mean, has_aux=True)(params["projectors"]["image"]["prompter"])

    (loss, aux), grads = run(params, batch)
    bert = Bert(params["projectors"]["image"]["prompter"])
    words, contrast, vocabulary = reference(llama[0], bert, text)
    wanted = words + weights["contrast"] * contrast + weights["vocabulary"] * vocabulary
    tools_close(loss, wanted)
    tools_close(aux["contrast"] / aux["weight"], contrast)
    tools_close(aux["vocabulary"] / aux["weight"], vocabulary)
    assert aux["weight"] == 16 and aux["targets"] == 16
    wanted.backward()
    tools_close(grads["out"]["kernel"], bert.out.weight.grad.T)
    tools_close(grads["contrast"]["kernel"], bert.contrast.weight.grad.T)
    tools_close(grads["temperature"], bert.temperature.grad)
    embedded = bert.bert.embeddings.word_embeddings.weight.grad
    tools_close(grads["embedding"], embedded[:WORDS])
    tools_close(grads["marks"][0], embedded[WORDS])
    assert not grads["marks"][1].any()
    # The same where only targets are given to the loss, as a token plan hands them over.
    places = [np.flatnonzero(row) for row in text.loss_weights]
    at = np.stack([np.pad(row, (0, 8 - len(row)), constant_values=-1) for row in places]).astype(np.int32)
    (other, _), _ = run(params, batch.replace(texts={"text": dataclasses.replace(text, loss_positions=at)}))
    np.testing.assert_allclose(other, loss, rtol=1e-6)


@pytest.fixture
def tools_close():
    def close(mine, wanted):
        mine, wanted = np.asarray(mine), wanted.detach().numpy()
        bound = 1e-4 * max(1.0, float(np.sqrt(np.mean(np.square(wanted)))))
        assert mine.shape == wanted.shape and np.abs(mine - wanted).max() <= bound

    return close


def test_hidden_words_are_not_read(system, tools_close):
    model, params = system
    own, port = params["projectors"]["image"]["prompter"], model.projector("image")
    text = texts([4, 6])
    tokens, mask = captions_of(text)
    hidden = np.zeros((2, LONGEST), bool)
    hidden[0, 1] = hidden[1, 4] = True
    variables = {"params": params["projectors"]["image"]}
    run = jax.jit(lambda tokens, hidden: port.apply(variables, tokens, mask.numpy() > 0, hidden, method="prompts"))
    prompts, vectors, _ = run(tokens.numpy(), hidden)
    wanted = Bert(own)(torch.where(torch.tensor(hidden), WORDS + 1, tokens), mask)
    tools_close(prompts, wanted[0])
    tools_close(vectors, wanted[1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    # What stands there does not matter; without the mask it does.
    changed = tokens.numpy().copy()
    changed[hidden] = 2 + (changed[hidden] + 5) % 20
    assert (run(changed, hidden)[0] == prompts).all()
    assert (run(changed, np.zeros_like(hidden))[0] != prompts).any()
    # In training a share of the words is hidden, another every time; in evaluation none.
    batch = Batch({"text": text})
    keys = [jax.random.key(seed) for seed in range(2)]

    @jax.jit
    def losses(params):
        hiding = [PromptLoss()(model, params, batch, key)[0] for key in (None, *keys)]
        return jnp.stack([*hiding, PromptLoss(hidden=0.0)(model, params, batch, keys[0])[0]])

    none, *some, nothing = losses(params)
    assert len({float(loss) for loss in (none, *some)}) == 3
    np.testing.assert_allclose(nothing, none, rtol=1e-6)


def test_images_are_drawn_to_the_prompt(system):
    model, params = system
    text = texts([4, 5, 3], (True, True, False))
    pixels = np.random.default_rng(3).normal(size=(3, 1, 8, 8, 3)).astype(np.float32)
    segments = np.array([[1], [1], [0]], np.int32)
    batch = Batch({"text": text}, {"image": Media(pixels, segments)})

    def both(params):
        media = model.encode_media(params, batch.media)
        total, aux = PromptLoss(align=3.0)(model, params, batch.replace(media=media))
        words, plain = next_token_loss(model, params, batch.replace(media=media))
        return total / aux["weight"], (aux, words / plain["weight"], media["image"])

    (loss, (aux, words, media)), grads = jax.jit(jax.value_and_grad(both, has_aux=True))(params)
    bert = Bert(params["projectors"]["image"]["prompter"])
    prompts = bert(*captions_of(text))[0].detach().numpy()
    align = np.mean(np.square(media.values[:2] - prompts[:2]))
    np.testing.assert_allclose(aux["align"] / aux["weight"], align, rtol=1e-4)
    np.testing.assert_allclose(loss, words + 3 * align, rtol=1e-4)
    grads = flatten(grads["projectors"]["image"])
    assert not any(grad.any() for path, grad in grads.items() if path.startswith("prompter/"))
    assert all(grad.any() for path, grad in grads.items() if path == "reader/queries" or path == "reader/out/kernel")
    # Nothing is left to draw where the tokens are the prompt already.
    same = Media(jnp.asarray(prompts), np.ones((3, QUERIES), np.int32))
    assert align_mean(same, prompts, jnp.ones(3, bool)) == 0


def test_contrast_of_nothing_is_nothing():
    vectors = jnp.eye(3, 4)
    assert contrast_mean(vectors, jnp.float32(0.5), jnp.zeros(3, bool), 0.1) == 0
    # Of vectors that are all alike, every caption is as likely; smoothing or not.
    alike = contrast_mean(jnp.ones((3, 4)) / 2, jnp.float32(0.5), jnp.array([True, True, False]), 0.3)
    np.testing.assert_allclose(alike, np.log(2), rtol=1e-6)


def test_bad_input(system):
    model, params = system
    with pytest.raises(ConfigError, match="num_prompts is 4, but its reader makes 3 tokens"):
        PromptedConfig(READER, dataclasses.replace(PROMPTER, num_prompts=4))
    with pytest.raises(ConfigError, match="vocab_size must be null"):
        PromptedConfig(dataclasses.replace(READER, vocab_size=9), PROMPTER)
    with pytest.raises(ConfigError, match="hidden is a share"):
        PromptLoss(hidden=1.0)
    with pytest.raises(ConfigError, match='"vocabulary"'):
        loss_of(model, {"vocabulry": 1.0})
    assert loss_of(model, {"align": 10.0}) == PromptLoss(align=10.0)
    with pytest.raises(ValueError, match="several captions for one item"):
        PromptLoss()(model, params, Batch({"text": texts([2, 2])}, {}, media_owner=np.zeros(2, np.int32)))
    text = dataclasses.replace(texts([2, 2]), attend_group=np.zeros((2, 11), np.int32))
    with pytest.raises(ValueError, match="no single caption"):
        prompted_text(text, 3)
    config = dataclasses.replace(
        model.config,
        generators={"what": DecisionConfig(4)},
        output_projectors={"what": LinearOutputConfig(LLM_WIDTH, 4, "mean")},
        signal_tokens={"what": (29,)},
    )
    with pytest.raises(ConfigError, match="not trained beside generators"):
        loss_of(MultimodalLM(config), {})
    assert from_dict(MultimodalLMConfig, to_dict(model.config)) == model.config
