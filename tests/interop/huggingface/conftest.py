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
