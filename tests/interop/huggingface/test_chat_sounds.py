"""A system that hears: chat about a WAV file takes what transformers' feature extractor makes of its samples."""

import wave

import jax
import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import mmjax
from mmjax.api import Model
from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.audio import AudioProcessor
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.processor import Processor
from mmjax.data.recipes import Whole
from mmjax.data.tokenizer import load_tokenizer
from mmjax.encoders.whisper import WhisperEncoderConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

SPECIAL = ["<|end|>", "<pad>", "<audio>"]
TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'audio' %}<audio>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
# A second of sound is a hundred frames, of which two become a token.
TOKENS = 50


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    place = tmp_path_factory.mktemp("sound")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=259, special_tokens=SPECIAL, initial_alphabet=alphabet))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<pad>", extra_special_tokens=["<audio>"]
    ).save_pretrained(place / "tokenizer")
    extractor = transformers.WhisperFeatureExtractor(feature_size=12, chunk_length=1)
    config = MultimodalLMConfig(
        DecoderConfig(vocab_size=259, width=36, num_layers=1, num_heads=3, num_kv_heads=1, head_dim=12, mlp_width=40),
        {"audio": WhisperEncoderConfig(num_mels=12, max_positions=TOKENS, width=20, num_layers=1, num_heads=2,
                                       mlp_width=24)},
        {"audio": LinearProjectorConfig(20, 36)},
        {"audio": 2},
    )  # fmt: skip
    recipe = Whole(AudioProcessor.from_hf(extractor.to_dict()))
    processor = Processor(
        load_tokenizer(str(place / "tokenizer")), {"audio": recipe}, TEMPLATE,
        {"audio": "<audio>"}, dict(config.media_tokens), config.num_tokens, **config.processor_options,
    )  # fmt: skip
    module = MultimodalLM(config)
    return Model(config, jax.jit(module.init)(jax.random.key(0)), processor), extractor


def messages(path):
    content = [{"type": "audio", "path": str(path)}, {"type": "text", "text": "what?"}]
    return [{"role": "user", "content": content}]


@pytest.mark.slow
def test_a_wav_file(hearing, tmp_path):
    model, extractor = hearing
    samples = (np.sin(np.arange(12000) * 0.11) * 20000).astype(np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    sample = model.processor.sample(parse_record({"messages": messages(tmp_path / "a.wav")}, "row 1"))
    assert sample.tokens[:TOKENS].tolist() == [2] * TOKENS and len(sample) == TOKENS + len("what?")
    theirs = extractor(samples / 32768, sampling_rate=16000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(sample.media["audio"][0], theirs[0].T, atol=1e-5)
    batch = model.batch(input_ids=sample.tokens[None], input_features=theirs)
    mine = collate([sample], model.processor.plan)
    np.testing.assert_allclose(mine.media["audio"].values[0, :1], batch.media["audio"].values[0], atol=1e-5)

    reply = model.chat(messages(tmp_path / "a.wav"), max_new_tokens=3)
    arrays = model.generate(input_ids=sample.tokens[None], input_features=theirs, max_new_tokens=3)
    assert str(reply) == arrays.text[0]
    model.save_pretrained(tmp_path / "own", format="mmjax")
    again = mmjax.from_pretrained(tmp_path / "own").processor
    back = again.sample(parse_record({"messages": messages(tmp_path / "a.wav")}, "row 1"))
    np.testing.assert_array_equal(back.media["audio"][0], sample.media["audio"][0])


def test_what_is_no_sound(hearing, tmp_path):
    model, _ = hearing
    with pytest.raises(FileNotFoundError, match=r"row 3: audio 0: .*no\.wav"):
        model.processor.sample(parse_record({"messages": messages(tmp_path / "no.wav")}, "row 3"))
    (tmp_path / "bad.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVE")
    with pytest.raises(ValueError, match=r"row 4: audio 0: .*bad\.wav"):
        model.processor.sample(parse_record({"messages": messages(tmp_path / "bad.wav")}, "row 4"))
    seen = [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(ValueError, match=r"row 5: image 0: the model has no port 'image', only \['audio'\]"):
        model.processor.sample(parse_record({"messages": seen}, "row 5"))
