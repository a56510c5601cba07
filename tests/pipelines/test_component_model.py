"""Components of diffusers' directories under diffusers' names of arguments, and weights that are pickles."""

import diffusers
import jax
import numpy as np
import pytest
import torch

import mmjax
from mmjax.interop.tensors import WeightsError
from mmjax.paths import flatten
from mmjax.pipelines.component_model import load_component


def close(ours, theirs):
    theirs = np.moveaxis(theirs.detach().numpy(), 1, -1)
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * max(1.0, float(np.sqrt(np.mean(theirs**2))))


def test_a_unet_is_called_like_theirs(theirs, tmp_path):
    net = theirs.unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=31
    )
    net.save_pretrained(tmp_path)
    ours = mmjax.from_pretrained(tmp_path)
    x, text, pooled = theirs.normal(0, 3, 6, 10, 4), theirs.normal(1, 3, 5, 12), theirs.normal(2, 3, 7)
    sizes = np.asarray([[12, 20, 0, 0, 12, 20], [24, 24, 3, 5, 12, 20], [7, 9, 1, 2, 3, 4]], np.float32)
    for time in (7, 900):
        got = ours(
            sample=x, timestep=time, encoder_hidden_states=text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        ).sample  # fmt: skip
        added = {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(sizes)}
        close(got, net(theirs.first(x), time, encoder_hidden_states=torch.tensor(text), added_cond_kwargs=added).sample)
    (program,) = ours._programs.values()
    assert program._cache_size() == 1
    with pytest.raises(ValueError, match="added_cond_kwargs: image_embeds is not known"):
        ours(x, 7, text, added_cond_kwargs={"image_embeds": pooled})
    with pytest.raises(ValueError, match="give sample"):
        ours(x, encoder_hidden_states=text)


def test_vectors_as_class_labels_are_pooled(theirs, tmp_path):
    net = theirs.unet(class_embed_type="simple_projection", projection_class_embeddings_input_dim=6)
    net.save_pretrained(tmp_path)
    x, text, labels = theirs.normal(0, 2, 4, 6, 4), theirs.normal(1, 2, 5, 12), theirs.normal(2, 2, 6)
    times = np.asarray([3, 500])
    mask = np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    got = mmjax.from_pretrained(tmp_path)(x, times, text, class_labels=labels, encoder_attention_mask=mask).sample
    wanted = net(
        theirs.first(x), torch.tensor(times), torch.tensor(text), class_labels=torch.tensor(labels),
        encoder_attention_mask=torch.tensor(mask),
    )  # fmt: skip
    close(got, wanted.sample)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_an_autoencoder_is_called_like_theirs_from_either_file(safe, theirs, tmp_path):
    theirs.vae.save_pretrained(tmp_path, safe_serialization=safe)
    assert (tmp_path / "diffusion_pytorch_model.bin").is_file() != safe
    ours = mmjax.from_pretrained(tmp_path)
    x, z = theirs.normal(0, 2, 8, 12, 3), theirs.normal(1, 2, 3, 5, 4)
    with torch.no_grad():
        wanted = theirs.vae.encode(theirs.first(x)).latent_dist
        got = ours.encode(x)
        close(got.mean, wanted.mean)
        close(got.logvar, wanted.logvar)
        assert got.latent_dist.mean is got.mean
        close(ours.decode(z).sample, theirs.vae.decode(theirs.first(z)).sample)
    ours.save_pretrained(tmp_path / "out")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out")
    close(ours.decode(z).sample, again.decode(theirs.first(z)).sample)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_shards_are_read_and_other_precisions_beside_them_left(safe, theirs, tmp_path):
    theirs.vae.save_pretrained(tmp_path, max_shard_size="20KB", safe_serialization=safe)
    assert len(list(tmp_path.glob("diffusion_pytorch_model-*"))) > 1
    theirs.vae.save_pretrained(tmp_path / "one")
    shards, one = (flatten(load_component(place).params) for place in (tmp_path, tmp_path / "one"))
    assert shards.keys() == one.keys() and all((np.asarray(shards[name]) == one[name]).all() for name in one)
    theirs.vae.save_pretrained(tmp_path / "one", variant="fp16")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 2
    assert flatten(load_component(tmp_path / "one").params).keys() == one.keys()


@pytest.mark.parametrize("name", ["weights.pth", "model.ckpt", "vae.bin"])
def test_one_pickle_of_another_name_is_read(name, theirs, tmp_path):
    theirs.vae.save_config(tmp_path)
    theirs.vae.save_pretrained(tmp_path / "safe")
    # As Lightning writes them: the weights are one entry among others.
    torch.save({"state_dict": theirs.vae.state_dict(), "epoch": 3}, tmp_path / name)
    got, wanted = (flatten(load_component(place).params) for place in (tmp_path, tmp_path / "safe"))
    assert got.keys() == wanted.keys() and all((np.asarray(got[path]) == wanted[path]).all() for path in got)
    torch.save({}, tmp_path / "another.pth")
    with pytest.raises(FileNotFoundError, match="holds no weights: .*another.pth"):
        load_component(tmp_path)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "weights.pth", "model.ckpt"])
def test_pickles_run_no_code(name, theirs, tmp_path):
    theirs.vae.save_config(tmp_path)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"decoder.conv_in.weight": Evil()}, tmp_path / name)
    with pytest.raises(WeightsError, match=f"{name}: .*open"):
        mmjax.from_pretrained(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_pickles_of_a_whole_pipeline_are_read_and_run_no_code(theirs, tmp_path):
    whole, place = theirs.pipeline(diffusers.StableDiffusionPipeline, "pickled", unet=theirs.unet())
    safe = mmjax.from_pretrained(place)
    for part in ("text_encoder", "unet", "vae"):
        (found,) = (place / part).glob("*.safetensors")
        found.unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(getattr(whole, part).state_dict(), place / part / name)
    read = flatten(mmjax.from_pretrained(place).parts.params)
    wanted = flatten(safe.parts.params)
    assert read.keys() == wanted.keys() and all((np.asarray(read[path]) == wanted[path]).all() for path in read)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"text_model.final_layer_norm.weight": Evil()}, place / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="text_encoder/pytorch_model.bin: .*open"):
        mmjax.from_pretrained(place)
    assert not (tmp_path / "touched").exists()


def test_a_mesh_is_refused(theirs, tmp_path):
    theirs.vae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not placed on a mesh"):
        mmjax.from_pretrained(tmp_path, mesh=jax.make_mesh((1,), ("data",)))
