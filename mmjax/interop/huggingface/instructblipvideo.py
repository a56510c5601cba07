"""InstructBLIP on videos (transformers' InstructBlipVideoForConditionalGeneration): each frame read by itself.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/instructblipvideo
"""

from mmjax.interop.huggingface.blip2 import QFormerFamily

FAMILY = QFormerFamily(
    kind="instructblipvideo",
    architecture="InstructBlipVideoForConditionalGeneration",
    part="instructblipvideo",
    instructed=True,
    frames=4,  # config.json does not say it; their processor takes as many from every video
)
