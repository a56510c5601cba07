"""Images changed after a text by Stable Diffusion XL: `ImageToImage` with XL's parts."""

from pathlib import Path

from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import xl
from mmjax.pipelines.image_to_image import ImageToImage
from mmjax.pipelines.xl import load_xl_parts

PIPELINE = "StableDiffusionXLImg2ImgPipeline"
PARTS = xl.PARTS


def load(directory: Path, dtype: str, param_dtype: str) -> ImageToImage:
    """Reads the directory of a diffusers StableDiffusionXLImg2ImgPipeline; see `load_latent_parts`.

    Raises:
        ConfigError: also for the refiner, which reads a score of beauty in place of the image's size.
    """
    parts = load_xl_parts(directory, dtype, param_dtype)
    return ImageToImage(parts, load_schedule(directory / "scheduler"), strength=0.3, guidance_scale=5.0)
