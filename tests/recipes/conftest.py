"""The demo's model in small: its template and its ports, with nothing pretrained."""

import jax
import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from configs.demo import get_config
from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.processor import Processor
from mmjax.data.tokenizer import load_tokenizer
from mmjax.encoders.efficientnet import EfficientNetConfig, EfficientNetStage
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.pooled import PooledProjectorConfig
from mmjax.recipes.demo.assets import load_assets
from mmjax.recipes.demo.run import limited
from mmjax.recipes.demo.system import PORT, System

CONTROL = ["<|im_start|>", "<|im_end|>", "<file_sep>"]


@pytest.fixture(scope="module")
def demo_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = HFTokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    raw.save(str(folder / "tokenizer.json"))
    named = '{"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}'
    (folder / "tokenizer_config.json").write_text(named)
    found = load_tokenizer(str(folder))
    found.chat_template = get_config()["processor"]["template"]
    return found


@pytest.fixture(scope="module")
def demo_system(demo_tokenizer):
    backbone = DecoderConfig(demo_tokenizer.vocab_size, 24, 2, 3, 1, 8, 40, max_positions=512, tie_embeddings=True)
    encoder = EfficientNetConfig(
        image_size=16, resolution=16, stem_width=4, head_width=7, stages=(EfficientNetStage(3, 2, 1, 5, 1),)
    )
    projector = PooledProjectorConfig(encoder.feature_width, 24, hidden=9, scale=0.3)
    ports = {PORT: encoder}, {PORT: projector}, {PORT: demo_tokenizer.token_id("<file_sep>")}
    model = MultimodalLM(MultimodalLMConfig(backbone, *ports))
    params = jax.jit(model.init)(jax.random.key(0))
    processor = Processor(demo_tokenizer, {}, None, {}, ports[2], model.num_tokens, lengths=(96, 256, 448))
    return System(model, params, processor)


@pytest.fixture(scope="module")
def demo_features():
    random = np.random.default_rng(0)
    pictures = limited(load_assets(), 16).pictures
    return {picture.name: random.normal(size=(5, 12)).astype(np.float32) for picture in pictures}
