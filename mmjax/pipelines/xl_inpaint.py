"""Parts of images drawn anew after a text by Stable Diffusion XL: `Inpainting` with XL's parts."""

from pathlib import Path

from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import xl
from mmjax.pipelines.inpaint import Inpainting
from mmjax.pipelines.xl import load_xl_parts

PIPELINE = "StableDiffusionXLInpaintPipeline"
PARTS = xl.PARTS


def load(directory: Path, dtype: str, param_dtype: str) -> Inpainting:
    """Reads the directory of a diffusers StableDiffusionXLInpaintPipeline; see `load_latent_parts`."""
    parts = load_xl_parts(directory, dtype, param_dtype)
    return Inpainting(parts, load_schedule(directory / "scheduler"), strength=0.9999)
