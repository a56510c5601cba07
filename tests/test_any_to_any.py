"""LLM, output projector and Stable Diffusion in one program, beside transformers, torch and diffusers put together."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.func import functional_call

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, TextStream
from mmjax.generators.diffusion import DiffusionConfig, draw_noise
from mmjax.generators.noise import NoiseConfig
from mmjax.generators.schedules import make_steps
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.interop import diffusers as interop
from mmjax.interop import huggingface
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.output_projectors import MLPOutputConfig
from mmjax.paths import flatten, unflatten
from mmjax.signals import condition, draw_media, no_condition, signal_noise, signal_states
from mmjax.train.signal_loss import SignalLoss

SIGNAL = (58, 59)
SCALE = 2.0  # of LoRA: alpha / rank
WIDTH, CONTEXT = 24, 12
LORA = LoRAConfig(2, 4.0, ("q", "v"))


class Parts:
    """Their parts with random weights, and ours with the same."""

    def __init__(self, place):
        torch.manual_seed(0)
        llama = transformers.LlamaConfig(
            vocab_size=60, hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, attn_implementation="eager",
        )  # fmt: skip
        self.llm = transformers.LlamaForCausalLM(llama)
        self.unet = diffusers.UNet2DConditionModel(
            sample_size=6, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=CONTEXT, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        )  # fmt: skip
        self.vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, sample_size=12,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        text = transformers.CLIPTextConfig(
            vocab_size=20, hidden_size=CONTEXT, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=len(SIGNAL), bos_token_id=18, eos_token_id=19, pad_token_id=1,
        )  # fmt: skip
        self.text = transformers.CLIPTextModel(text)
        self.maps = [torch.nn.Linear(WIDTH, 20), torch.nn.Linear(20, CONTEXT)]
        for name in ("llm", "unet", "vae", "text"):
            getattr(self, name).save_pretrained(place / name)
        llm, text = huggingface.load(place / "llm"), huggingface.load(place / "text")
        unet, vae = interop.load(place / "unet"), interop.load(place / "vae")
        self.adapters = {
            f"model.layers.{layer}.self_attn.{name}_proj.weight": (torch.randn(WIDTH, 2), torch.randn(2, heads * 6))
            for layer in range(2)
            for name, heads in (("q", 4), ("v", 2))
        }
        self.config = MultimodalLMConfig(
            dataclasses.replace(llm.config.backbone, lora=LORA),
            generators={"image_out": DiffusionConfig(unet.config, vae.config)},
            output_projectors={"image_out": MLPOutputConfig(WIDTH, 20, CONTEXT)},
            signal_tokens={"image_out": SIGNAL},
            generator_encoders={"image_out": text.config},
        )
        shapes = MultimodalLM(self.config).param_shapes()
        known = flatten(
            {
                "backbone": llm.params["backbone"],
                "generators": {"image_out": {"denoiser": unet.params, "autoencoder": vae.params}},
                "generator_encoders": {"image_out": text.params},
                "output_projectors": {
                    "image_out": {
                        name: {"kernel": one.weight.detach().numpy().T, "bias": one.bias.detach().numpy()}
                        for name, one in zip(("fc1", "fc2"), self.maps, strict=True)
                    }
                },
            }
        )
        for path in flatten(shapes).keys() - known.keys():
            name, side = path.split("/")[-2:]
            pairs = [pair for key, pair in self.adapters.items() if f".{name}_proj" in key]
            stacked = np.stack([pair[side == "lora_b"].numpy() for pair in pairs])
            known[path] = stacked.reshape(flatten(shapes)[path].shape)
        self.params = unflatten({path: jnp.asarray(leaf) for path, leaf in known.items()})
        assert jax.tree.map(jnp.shape, self.params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("parts"))


def example():
    """Two signals, one, and one whose target is padding; the last row is padded on the left."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, 57, (3, 16)).astype(np.int32)
    tokens[0, [5, 6, 11, 12]] = SIGNAL * 2
    tokens[1, 9:11] = tokens[2, 9:11] = SIGNAL
    segments = np.ones_like(tokens)
    segments[2, :3] = 0
    positions = (np.cumsum(segments, axis=1) - 1).clip(0).astype(np.int32)
    text = TextStream(tokens, positions, segments, loss_weights=(np.arange(16) > 3) * segments.astype(np.float32))
    targets = {
        "latents": random.normal(size=(3, 2, 6, 6, 4)).astype(np.float32),
        "captions": random.integers(0, 17, (3, 2, 2)).astype(np.int32),
        "weights": np.array([[1, 1], [1, 0], [0, 0]], np.float32),
    }
    return Batch({"text": text}, {}, targets={"image_out": targets})


def reference_loss(parts, leaves, batch, noise, times, prediction):
    """Text, denoiser's error and alignment in torch; `leaves` are those whose gradients are compared."""
    weights = dict(parts.llm.named_parameters())
    for name, (a, b) in leaves["adapters"].items():
        weights[name] = weights[name] + SCALE * (a @ b).T
    text = batch.text
    ids = torch.tensor(text.tokens).long()
    out = functional_call(
        parts.llm,
        weights,
        args=(ids,),
        kwargs={
            "attention_mask": torch.tensor(text.segment_ids),
            "position_ids": torch.tensor(text.positions).long(),
            "output_hidden_states": True,
        },
    )
    logp = out.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    weight = torch.tensor(text.loss_weights[:, 1:] * (text.segment_ids[:, :-1] > 0))
    said = -(logp * weight).sum() / weight.sum()
    states = torch.stack([out.hidden_states[-1][row, at : at + 2] for row, at in [(0, 5), (0, 11), (1, 9)]])
    first, second = leaves["maps"]
    asked = torch.relu(states @ first.weight.T + first.bias) @ second.weight.T + second.bias
    target = batch.targets["image_out"]
    chosen = [0, 1, 2]
    latents = torch.tensor(target["latents"].reshape(6, 6, 6, 4)[chosen]).permute(0, 3, 1, 2)
    noise = torch.tensor(np.array(noise)[chosen]).permute(0, 3, 1, 2)
    times = torch.tensor(np.array(times)[chosen])
    if prediction == "flow":
        sigma = (times / 1000)[:, None, None, None]
        noisy, wanted = (1 - sigma) * latents + sigma * noise, noise - latents
    else:
        scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction" if prediction == "v" else prediction)
        times = times.long()
        noisy = scheduler.add_noise(latents, noise, times)
        wanted = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, times)
    error = parts.unet(noisy, times, asked).sample - wanted
    known = parts.text(torch.tensor(target["captions"].reshape(6, 2)[chosen]).long()).last_hidden_state.detach()
    return said, error.square().mean(), (asked - known).square().mean()


@pytest.mark.quick("v")
@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_loss_and_gradients_are_torchs(parts, prediction):
    sampler = "flow_euler" if prediction == "flow" else "ddim"
    generator = dataclasses.replace(
        parts.config.generators["image_out"], schedule=ScheduleConfig(sampler, NoiseConfig(prediction=prediction))
    )
    model = MultimodalLM(dataclasses.replace(parts.config, generators={"image_out": generator}))
    batch, rng = example(), jax.random.key(3)
    loss = SignalLoss(text=0.5, diffusion=3.0, alignment=0.25)
    # As the loss draws them, for all six places of a signal.
    key = jax.random.fold_in(rng, 1000)
    noise, times = draw_noise(generator, jax.random.split(key)[0], (6, 6, 6, 4))

    @jax.jit
    def run(params):
        total, aux = loss(model, params, batch, rng)
        return total / aux["weight"], {name: aux[name] / aux["weight"] for name in ("diffusion", "alignment")}

    (value, means), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(parts.params)
    for module in (parts.llm, parts.unet, *parts.maps):
        module.zero_grad()
    adapters = {
        name: tuple(leaf.clone().requires_grad_() for leaf in pair) for name, pair in parts.adapters.items()
    }
    said, error, apart = reference_loss(
        parts, {"adapters": adapters, "maps": parts.maps}, batch, noise, times, prediction
    )
    wanted = 0.5 * said + 3 * error + 0.25 * apart
    wanted.backward()
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(means["diffusion"], error.item(), rtol=1e-5)
    np.testing.assert_allclose(means["alignment"], apart.item(), rtol=1e-5)

    def same(found, wanted):
        wanted = wanted.numpy()
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(np.asarray(found).reshape(wanted.shape), wanted, atol=1e-4 * np.abs(wanted).max())

    blocks = grads["backbone"]["blocks"]["attn"]
    for name, pair in adapters.items():
        layer, which = int(name.split(".")[2]), name.split(".")[4][0]
        for side, leaf in zip(("lora_a", "lora_b"), pair, strict=True):
            same(blocks[which][side][layer], leaf.grad)
    own = grads["output_projectors"]["image_out"]
    for name, one in zip(("fc1", "fc2"), parts.maps, strict=True):
        same(own[name]["kernel"].T, one.weight.grad)
    unet = grads["generators"]["image_out"]["denoiser"]
    same(unet["conv_in"]["kernel"].transpose(3, 2, 0, 1), parts.unet.conv_in.weight.grad)
    same(unet["conv_out"]["bias"], parts.unet.conv_out.bias.grad)
    # What only says what is wanted is not moved by it.
    for path, grad in flatten(grads).items():
        if path.startswith(("generator_encoders/", "generators/image_out/autoencoder/")):
            assert not np.asarray(grad).any(), path


def test_media_are_encoded_and_drops_lead_to_no_condition(parts):
    model, batch, rng = MultimodalLM(parts.config), example(), jax.random.key(1)
    target = dict(batch.targets["image_out"])
    del target["latents"], target["captions"]
    media = np.random.default_rng(2).uniform(-1, 1, (3, 2, 12, 12, 3)).astype(np.float32)
    scale = parts.vae.config.scaling_factor
    pixels = torch.tensor(media.reshape(6, 12, 12, 3)).permute(0, 3, 1, 2)
    latents = scale * parts.vae.encode(pixels).latent_dist.mean.detach().permute(0, 2, 3, 1).numpy()

    @jax.jit
    def run(params, target, rng):
        means = []
        for drop in (0.0, 0.999999):
            _, aux = SignalLoss(drop=drop)(model, params, batch.replace(targets={"image_out": target}), rng)
            means.append(aux["diffusion"] / aux["weight"])
        return jnp.stack(means)

    encoded = run(parts.params, target | {"media": media}, rng)
    given = run(parts.params, target | {"latents": latents.reshape(3, 2, 6, 6, 4)}, rng)
    np.testing.assert_allclose(encoded, given, rtol=1e-4)
    # A model that is never told anything is one whose output projector always says what it says of zeros.
    silent = jax.tree.map(lambda leaf: leaf, parts.params)
    mute = dict(silent["output_projectors"]["image_out"])
    mute["fc1"] = {**mute["fc1"], "kernel": jnp.zeros_like(mute["fc1"]["kernel"])}
    silent = silent | {"output_projectors": {"image_out": mute}}
    np.testing.assert_allclose(run(silent, target | {"media": media}, rng)[0], encoded[1], rtol=1e-5)
    assert abs(encoded[0] - encoded[1]) > 1e-6


@pytest.mark.parametrize("negative", [(), (18, 19)], ids=["zeros", "text"])
def test_drawn_images_are_those_of_diffusers(parts, negative):
    generator = dataclasses.replace(parts.config.generators["image_out"], size=(12, 16), negative_tokens=negative)
    model = MultimodalLM(dataclasses.replace(parts.config, generators={"image_out": generator}))
    text, keys = example().text, jax.random.split(jax.random.key(5), (3, 2))
    rows, shape = 6, (6, 6, 8, 4)

    @jax.jit
    def run(params, steps):
        states, real = signal_states(model, "image_out", text, model.forward(params, {"text": text}), 2)
        asked = condition(model, params, "image_out", states).sequence
        without = no_condition(model, params, "image_out").sequence
        return draw_media(model, params, "image_out", states, steps, 3.0, keys), asked, without, real

    count = 5
    drawn, asked, without, real = run(parts.params, make_steps(generator.schedule, count, capacity=8))
    np.testing.assert_array_equal(real, [[True, True], [True, False], [True, False]])
    assert drawn.shape == (3, 2, 12, 16, 3)
    if negative:
        known = parts.text(torch.tensor([negative])).last_hidden_state.detach().numpy()
        np.testing.assert_allclose(without, known, atol=1e-4)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(count)
    x = torch.tensor(np.array(signal_noise(keys.reshape(-1), shape[1:])[0])).permute(0, 3, 1, 2)
    both = torch.tensor(np.concatenate([np.broadcast_to(without, asked.shape), asked]))
    with torch.no_grad():
        for time in scheduler.timesteps:
            one, other = parts.unet(torch.cat([x, x]), time, both).sample.split(rows)
            x = scheduler.step(one + 3.0 * (other - one), time, x).prev_sample
        wanted = parts.vae.decode(x / parts.vae.config.scaling_factor).sample.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(drawn.reshape(6, 12, 16, 3), (wanted / 2 + 0.5).clip(0, 1), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"negative_tokens": (20,)}, "below 20"),
        ({"negative_tokens": (1, 2, 3)}, "reads 2"),
        ({"size": (12, 15)}, "multiples of 2"),
    ],
)
def test_generators_that_do_not_fit(parts, change, said):
    with pytest.raises(ConfigError, match=said):
        generator = dataclasses.replace(parts.config.generators["image_out"], **change)
        dataclasses.replace(parts.config, generators={"image_out": generator})


def test_config_goes_through_plain_data(parts):
    assert from_dict(MultimodalLMConfig, to_dict(parts.config)) == parts.config
    with pytest.raises(ConfigError, match="negative_tokens needs"):
        generator = dataclasses.replace(parts.config.generators["image_out"], negative_tokens=(1,))
        dataclasses.replace(parts.config, generators={"image_out": generator}, generator_encoders={})
