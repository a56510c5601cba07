"""InstructBLIP (transformers' InstructBlipForConditionalGeneration): BLIP-2 whose Q-Former reads the instruction.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/instructblip
"""

from mmjax.interop.huggingface.blip2 import QFormerFamily

FAMILY = QFormerFamily(
    kind="instructblip",
    architecture="InstructBlipForConditionalGeneration",
    part="instructblip",
    instructed=True,
)
