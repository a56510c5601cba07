"""What the tests of encoders share: weights at random, and the way out to transformers and back."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mmjax
from mmjax.config import from_dict, to_dict
from mmjax.interop.huggingface import load, save


@dataclasses.dataclass
class Weights:
    """Ways of a model of transformers and its directories below `place`."""

    place: object

    @staticmethod
    def randomised(model, seed=2):
        """Every weight and running statistic of a model at random; what scales is around one."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0)
                elif tensor.is_floating_point():
                    scales = tensor.ndim == 1 and name.endswith(("weight", "lambda1"))
                    tensor.normal_(1.0 if scales else 0.0, 0.25)
        return model.eval()

    def loaded(self, model):
        """The model as our `load` reads it, its config through JSON and back on the way."""
        model.save_pretrained(self.place / "theirs")
        loaded = load(self.place / "theirs")
        assert from_dict(type(loaded.config), json.loads(json.dumps(to_dict(loaded.config)))) == loaded.config
        return loaded

    def model(self):
        """What a user holds of the directory that `loaded` read."""
        return mmjax.from_pretrained(self.place / "theirs")

    def again(self, loaded, cls, absent=r"(?!)"):
        """Exports; transformers' reading of that, with every weight equal to the first ones.

        `absent` is a pattern of buffers that the export leaves out.
        """
        save(self.place / "ours", loaded.config, loaded.params, loaded.hf_config)
        reread = load(self.place / "ours")
        assert reread.config == loaded.config
        jax.tree.map(np.testing.assert_array_equal, reread.params, loaded.params)
        model, info = cls.from_pretrained(self.place / "ours", output_loading_info=True)
        assert all(re.fullmatch(absent, name) for name in info["missing_keys"])
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        model.save_pretrained(self.place / "again")
        theirs, mine = (load_file(self.place / d / "model.safetensors") for d in ("theirs", "again"))
        assert set(theirs) == set(mine)
        for name, array in theirs.items():
            np.testing.assert_array_equal(mine[name], array, err_msg=name)
        return model.eval()

    @staticmethod
    def pixels(*shape, seed=4):
        """Normal noise as torch takes images, [B, 3, H, W]."""
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def weights(tmp_path):
    """Directories of this test."""
    return Weights(tmp_path)


@pytest.fixture(scope="module")
def module_weights(tmp_path_factory):
    """Directories that the tests of a module share."""
    return Weights(tmp_path_factory.mktemp("weights"))


@dataclasses.dataclass
class System:
    """A whole model of transformers beside ours: logits, greedy tokens, the way out and back.

    Where not `whole`, what families have in common is left out: generation, and the library's own format.
    """

    place: object
    whole: bool

    def check(self, reference, inputs, new_tokens=3, rows=None):
        """Everything that a user would do with a checkpoint of `reference`.

        Args:
            reference: a tiny model; its weights are drawn anew here.
            inputs: name -> numpy array, as the processor gives them, for forward and generate.
            new_tokens: how many tokens are generated; 0 with padding on the right, which their generate cannot.
            rows: inputs of the forward pass alone, where it takes others than generate.

        Returns:
            Our model.
        """
        reference = reference.eval()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                scale = "norm" in name and name.endswith("weight")
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float(scale))
        reference.generation_config.eos_token_id = None
        reference.save_pretrained(self.place / "theirs")
        model = mmjax.from_pretrained(self.place / "theirs")
        assert from_dict(type(model.config), json.loads(json.dumps(to_dict(model.config)))) == model.config
        forward = inputs if rows is None else rows
        wanted = self.logits(reference, forward)
        self.close(forward, model(**forward).logits, wanted)
        if new_tokens and self.whole:
            options = dict(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
            with torch.no_grad():
                theirs = reference.generate(**tensors(inputs), **options)
            ours = model.generate(**inputs, max_new_tokens=new_tokens, eos_token_id=())
            np.testing.assert_array_equal(ours.tokens, theirs[:, -new_tokens:].numpy())

        model.save_pretrained(self.place / "ours")
        again, info = type(reference).from_pretrained(self.place / "ours", output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        torch.testing.assert_close(self.logits(again.eval(), forward), wanted, rtol=0, atol=1e-6)
        back = mmjax.from_pretrained(self.place / "ours")
        assert back.config == model.config
        if self.whole:
            model.save_pretrained(self.place / "own", format="mmjax")
            own = mmjax.from_pretrained(self.place / "own")
            assert own.config == model.config
            jax.tree.map(np.testing.assert_array_equal, own.params, back.params)
        return model

    @staticmethod
    def logits(reference, inputs):
        with torch.no_grad():
            return reference(**tensors(inputs)).logits

    @staticmethod
    def close(inputs, mine, wanted):
        """Where tokens are no padding, as the contract says: 1e-4 times max(1, RMS)."""
        seen = np.asarray(inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))) > 0
        if "decoder_input_ids" in inputs:  # an encoder-decoder's logits are those of what it writes
            seen = np.ones_like(inputs["decoder_input_ids"]) > 0
        mine, wanted = np.asarray(mine)[seen], wanted.float().numpy()[seen]
        assert mine.shape == wanted.shape and np.isfinite(mine).all()
        bound = 1e-4 * max(1.0, float(np.sqrt(np.mean(np.square(wanted)))))
        assert np.abs(mine - wanted).max() <= bound, f"{np.abs(mine - wanted).max():.3g} > {bound:.3g}"


def tensors(inputs):
    return {name: torch.as_tensor(np.asarray(value)) for name, value in inputs.items()}


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["logits and export", "whole"])
def system(request, tmp_path):
    """For most families: what is their own in `make test`, and everything in `make test-all`."""
    return System(tmp_path, request.param)


@pytest.fixture
def whole_system(tmp_path):
    """For a family of each kind: everything."""
    return System(tmp_path, True)


@pytest.fixture
def padded_rows():
    """Rows of (placeholder, how many), text between them -> input_ids and attention_mask, padded on the left."""

    def build(rows, left=True):
        rng, bodies = np.random.default_rng(5), []
        for items in rows:
            body = list(rng.integers(1, 79, 2))
            for token, count in items:
                body += [token] * count + list(rng.integers(1, 79, 2))
            bodies.append(body)
        length = max(map(len, bodies))
        ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
        for row, body in enumerate(bodies):
            part = slice(length - len(body), None) if left else slice(len(body))
            ids[row, part], mask[row, part] = body, 1
        return ids, mask

    return build
