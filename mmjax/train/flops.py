"""Model FLOPs of a training step, and the peak of the chips: the two halves of MFU.

Counted are matrix products and convolutions of the model itself: forward once, once more where a gradient
passes through to earlier activations, once more for weights that are trained (6N, 4N or 2N a token).
Attention is counted causal and within its window. Not counted are input embeddings, rematerialisation, padding,
the output layer where no loss is taken, and experts that a token does not go to. (Chowdhery et al., 2022, "PaLM",
appendix B, with causal attention.)
"""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.backbones.fusion.adapter_prompts import AdapterPromptsConfig
from mmjax.backbones.fusion.adapter_prompts_v2 import AdapterPromptsV2Config
from mmjax.backbones.fusion.gated_cross_attention import GatedCrossAttentionConfig
from mmjax.backbones.fusion.high_resolution import HighResolutionConfig
from mmjax.backbones.fusion.modality_experts import ModalityExpertsConfig
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.paths import flatten
from mmjax.train.losses import target_weights
from mmjax.train.two_sided_flops import TwoSidedFlops

# Dense bfloat16 FLOP/s of one chip from the makers' data sheets; the first name that the device kind holds.
PEAKS = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)


class StepFlops:
    """FLOPs of one training step of a model with a given set of trained paths.

    Args:
        model: a MultimodalLM.
        trained: the trained paths.
    """

    def __init__(self, model: Any, trained: Iterable[str]):
        self._model, self._trained = model, frozenset(trained)
        self._shapes = model.param_shapes()
        self._leaves = flatten(self._shapes)
        self._forward: dict[Any, tuple[float, float]] = {}
        config = model.config.backbone
        self._two_sided = None
        if isinstance(config, EncoderDecoderConfig):
            self._two_sided = TwoSidedFlops(config, self._leaves, self._trained)
            return
        # A gradient passes through the blocks as soon as anything in or before them is trained.
        inputs = ("backbone/embed/", "backbone/embed_new/", "backbone/positions/", "backbone/embed_norm/")
        before = ("projectors/", "encoders/", *inputs, "backbone/blocks/", "backbone/fusion/")
        passes = any(path.startswith(before) for path in self._trained)
        self.per_token = 0.0
        for path, leaf in self._leaves.items():
            if path.startswith("backbone/blocks/") and path.endswith(("/kernel", "/lora_a", "/lora_b")):
                used = config.moe.top_k / config.moe.num_experts if "/experts/" in path else 1
                self.per_token += 2 * used * math.prod(leaf.shape) * self._factor(path in self._trained, passes)
        windowed = sum(config.window_layers)
        self._layers_of = {None: config.num_layers - windowed, config.sliding_window or 0: windowed}
        self.per_pair = 4 * config.num_heads * config.head_dim * self._factor(passes, passes)
        self._count_fusion(passes)
        head = "backbone/embed/embedding" if config.tie_embeddings else "backbone/lm_head/kernel"
        passes_head = passes or any(path.startswith("backbone/norm/") for path in self._trained)
        self.per_target = (
            2 * config.width * config.vocab_size * self._factor(head in self._trained, passes_head)
        )
        # Codes of images with an output layer of their own.
        self.per_code = sum(
            2 * math.prod(leaf.shape) * self._factor(path in self._trained, passes_head)
            for path, leaf in self._leaves.items()
            if path in ("codes/out_fc1/kernel", "codes/out_fc2/kernel")
        )

    def _count_fusion(self, passes: bool) -> None:
        """What stands inside the backbone beside its blocks: of a token, of a media token, of a pair of them."""
        fusion = getattr(self._model.config.backbone, "fusion", None)
        self.read_layers, self.per_read, expert = 0, 0.0, 0.0
        self.per_read_pair, of_text = self.per_pair, self.per_token
        if isinstance(fusion, HighResolutionConfig):
            self.per_read_pair = 4 * fusion.num_heads * fusion.head_dim * self._factor(passes, passes)
        if isinstance(fusion, GatedCrossAttentionConfig):
            heads, _, width = fusion.heads(self._model.config.backbone.block)
            self.per_read_pair = 4 * heads * width * self._factor(passes, passes)
        for path, leaf in self._leaves.items():
            if not path.startswith("backbone/fusion/") or not path.endswith("/kernel"):
                continue
            flops = 2 * math.prod(leaf.shape) * self._factor(path in self._trained, passes)
            if getattr(fusion, "of_media", False) and "/cross/" not in path:
                expert += flops
            elif "/attn/k/" in path or "/attn/v/" in path:
                self.read_layers, self.per_read = leaf.shape[0], self.per_read + flops
            else:
                self.per_token += flops
        # A media token goes through the expert in place of the text's maps.
        self.per_media = expert - of_text if expert else 0.0
        if isinstance(fusion, AdapterPromptsConfig | AdapterPromptsV2Config):
            self.per_token += fusion.layers * fusion.num_prompts * self.per_pair
            self.read_layers = getattr(fusion, "media_layers", 0)
        if isinstance(fusion, ModalityExpertsConfig):
            # A token's experts are as many MLPs in place of one, each with its low-rank paths.
            for path, leaf in self._leaves.items():
                times = fusion.top_k - 1 if path.startswith("backbone/blocks/mlp/") and path.endswith("/kernel") else 0
                if path.startswith("backbone/fusion/") and "/lora_" in path:
                    times = fusion.top_k / fusion.num_experts
                self.per_token += 2 * times * math.prod(leaf.shape) * self._factor(path in self._trained, passes)

    def _inside(self, text: TextStream, batch: Batch) -> float:
        """FLOPs of reading media inside the backbone: their keys and values, and the pairs that attend."""
        config, total, start = self._model.config, 0.0, 0
        valid = np.asarray(text.segment_ids) > 0
        for port in (port for port in config.inside if port in batch.media):
            media, each = batch.media[port], config.layout(port).per_entry
            stages = {"raw": 1, "encoded": config.encoders[port].num_tokens(), "projected": each}
            numbers = np.ones(np.shape(media.values)[:2], int) if media.segment_ids is None else media.segment_ids
            real = np.asarray(numbers)[:, :: stages[media.stage]] > 0
            total += self.per_read * each * int(real.sum())
            owned = real if batch.media_owner is None else real[np.asarray(batch.media_owner)]
            seen = valid[:, :, None] & owned[:, None]
            if text.media_attention is not None:
                seen &= np.asarray(text.media_attention)[:, :, start : start + real.shape[1]]
            total += self.read_layers * self.per_read_pair * each * int(seen.sum())
            start += real.shape[1]
        return total

    @staticmethod
    def _factor(trained: bool, passes: bool) -> int:
        return 1 + int(trained) + int(passes)

    def of(self, batch: Batch, causal: bool = True) -> float:
        """FLOPs of one step on `batch` (host arrays); with `causal` False, attention as the full square."""
        total = 0.0 if self._two_sided is None else self._two_sided.of(batch, causal)
        for text in batch.texts.values() if self._two_sided is None else ():
            total += self.per_token * tokens_of(text) + self._inside(text, batch)
            if self.per_media and text.media_index is not None:
                total += self.per_media * int(np.count_nonzero(np.asarray(text.media_index) >= 0))
            for window, layers in self._layers_of.items():
                if layers:
                    total += layers * self.per_pair * attended_pairs(text, causal, window)
            total += self._said(text)
        for port, media in batch.media.items():
            total += self._media(port, media, batch)
        return total + self._codes(batch)

    def _said(self, text: TextStream) -> float:
        """FLOPs of the output layers, that of words or that of codes at each target."""
        wanted, codes = np.asarray(target_weights(text)) != 0, self._model.config.codes
        drawn = 0
        if codes is not None and codes.own:
            drawn = int(np.count_nonzero(wanted & (np.asarray(text.tokens) >= codes.first)))
        return self.per_target * (int(np.count_nonzero(wanted)) - drawn) + self.per_code * drawn

    def _codes(self, batch: Batch) -> float:
        """FLOPs of making images into codes, which are not trained."""
        codes = self._model.config.codes
        if codes is None or codes.port not in (batch.targets or {}):
            return 0.0
        target = batch.targets[codes.port]
        key = (codes.port, "codes", np.shape(target["media"])[2:])
        if key not in self._forward:
            image = jax.ShapeDtypeStruct((1, *key[2]), jnp.float32)
            encode = lambda params, image: self._model.codes(params, "encode", image)
            self._forward[key] = traced_flops(encode, self._shapes, image), 0.0
        return self._forward[key][0] * float(np.sum(target["weights"]))

    def _media(self, port: str, media: Media, batch: Batch) -> float:
        if media.stage == "projected":
            return 0.0
        key = (port, media.stage, np.shape(media.values))
        if key not in self._forward:
            image = self._model.config.regions.get(port)
            if image is None:
                self._forward[key] = self._media_forward(port, media)
            else:
                self._forward[key] = self._region_forward(image, port, batch)
        encode, project = self._forward[key]
        encoder_trained = self._share(f"encoders/{port}/")
        projector_trained = self._share(f"projectors/{port}/")
        if encoder_trained:
            encode *= 2 + encoder_trained
            project *= 2 + projector_trained
        else:
            project *= 1 + 2 * projector_trained
        real = 1.0 if media.segment_ids is None else float(np.mean(np.asarray(media.segment_ids) > 0))
        return (encode + project) * real

    def _media_forward(self, port: str, media: Media) -> tuple[float, float]:
        """Forward FLOPs of encoder and projector, read from their traced programs."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), media)
        encode, encoded = 0.0, shapes
        if media.stage == "raw":
            run = lambda params, item: self._model.encode(params, port, item)  # noqa: E731
            encode = traced_flops(run, self._shapes, shapes)
            encoded = jax.eval_shape(run, self._shapes, shapes)
        project = traced_flops(
            lambda p, item: self._model.encode_media(p, {port: item}), self._shapes, encoded
        )
        return encode, project

    def _region_forward(self, image: str, port: str, batch: Batch) -> tuple[float, float]:
        """The same of regions, which are read from the features of their images: theirs are not counted again."""
        media = {name: batch.media[name] for name in (image, port)}
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), media)
        alone = {image: shapes[image]}
        encode = self._model.encode_media
        return 0.0, traced_flops(encode, self._shapes, shapes) - traced_flops(encode, self._shapes, alone)

    def _share(self, prefix: str) -> float:
        """The trained share of the parameters under a prefix."""
        sizes = {
            path: math.prod(leaf.shape) for path, leaf in self._leaves.items() if path.startswith(prefix)
        }
        return sum(size for path, size in sizes.items() if path in self._trained) / max(
            sum(sizes.values()), 1
        )


def tokens_of(text: TextStream) -> int:
    """Tokens of a stream that are not padding."""
    return int(np.count_nonzero(np.asarray(text.segment_ids) > 0))


def attended_pairs(text: TextStream, causal: bool = True, window: int | None = None) -> int:
    """(query, key) pairs that one layer's attention has: within a segment; with groups, of the prefix and one's own.

    Causal: n (n + 1) / 2 of n tokens, less what lies beyond a sliding window; else n squared.
    """
    segments = np.asarray(text.segment_ids)
    groups = np.zeros_like(segments) if text.attend_group is None else np.asarray(text.attend_group)
    pairs = 0
    for segment, group in zip(segments, groups, strict=True):
        for number in np.unique(segment[segment > 0]):
            sizes = np.bincount(group[segment == number]).astype(np.int64)
            if not causal:
                pairs += int((sizes * sizes).sum() + 2 * sizes[0] * sizes[1:].sum())
                continue
            prefix = _triangle(sizes[0], window)
            pairs += prefix + sum(_triangle(sizes[0] + own, window) - prefix for own in sizes[1:])
    return pairs


def _triangle(length: int, window: int | None) -> int:
    """Pairs of a causal text of `length` tokens that each see at most `window`."""
    whole = int(length) if window is None else min(int(length), window)
    return whole * (whole + 1) // 2 + (int(length) - whole) * whole


def traced_flops(function: Any, *args: Any) -> float:
    """FLOPs of matrix products and convolutions in a function's jaxpr; scans count every turn."""
    return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contract, _), _ = params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contract)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
        else:
            inner = [_jaxpr_flops(sub) for value in params.values() for sub in _jaxprs(value)]
            times = params["length"] if name == "scan" else 1
            total += times * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return total


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    return [sub for item in value for sub in _jaxprs(item)] if isinstance(value, (tuple, list)) else []


def peak_flops(devices: Sequence[jax.Device]) -> tuple[float | None, str]:
    """(FLOP/s of all devices together, where the figure is from); None for an unknown kind.

    Accelerators: dense bfloat16 figures of the data sheets. CPU: a float32 matrix product timed now, on the
    whole machine, however many devices it is split into.
    """
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        return measured_peak(devices[0]), "float32 matrix product timed on this CPU at the start"
    for name, peak in PEAKS:
        if name.lower() in kind.lower():
            chips = {
                (device.process_index, tuple(getattr(device, "coords", (device.id,)))) for device in devices
            }
            return peak * len(chips), f"data sheet, dense bfloat16, {len(chips)} x {kind}"
    return None, f"no peak known for {kind!r}"


def measured_peak(device: jax.Device, size: int = 1024, times: int = 5) -> float:
    """Best FLOP/s of `times` float32 products of two size x size matrices."""
    a = jax.device_put(np.ones((size, size), np.float32), device)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
