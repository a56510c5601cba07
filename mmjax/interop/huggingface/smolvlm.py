"""SmolVLM and SmolVLM2 (transformers' SmolVLMForConditionalGeneration): Idefics3 under another name.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/smolvlm
"""

from mmjax.interop.huggingface import idefics3

FAMILY = idefics3.family("smolvlm", "SmolVLMForConditionalGeneration")
