"""Whole diffusion pipelines: a directory that diffusers' `save_pretrained` wrote, prompts in, media out.

A pipeline is a module with PIPELINE (diffusers' name of the class), PARTS (folders of its directory that it reads) and
`load(directory, dtype, param_dtype)`; the object that this gives is called with diffusers' names of arguments, arrays
channels last, and gives a `PipelineOutput`. What pipelines share: prompts.py, latents.py, directory.py, and for Stable
Diffusion's latent_parts.py. Steps, guidance and prompts are data of one compiled program.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from mmjax.config import ConfigError, nearest
from mmjax.pipelines import (
    control,
    edit,
    image_to_image,
    inpaint,
    sd3,
    text_to_audio,
    text_to_image,
    text_to_video,
    xl,
    xl_image_to_image,
    xl_inpaint,
)
from mmjax.pipelines.control import ControlledDiffusion
from mmjax.pipelines.directory import INDEX, check_parts, read_index
from mmjax.pipelines.edit import InstructedEditing
from mmjax.pipelines.image_to_image import ImageToImage
from mmjax.pipelines.inpaint import Inpainting
from mmjax.pipelines.placing import on_host, on_mesh
from mmjax.pipelines.text_to_audio import AudioDiffusion
from mmjax.pipelines.text_to_image import LatentDiffusion
from mmjax.pipelines.text_to_video import VideoDiffusion

# The one place where the class of a model_index.json meets our pipeline.
MODULES = (
    text_to_image, image_to_image, inpaint, edit, control, text_to_audio, text_to_video, xl, xl_image_to_image,
    xl_inpaint, sd3,
)  # fmt: skip
PIPELINES = {module.PIPELINE: module for module in MODULES}
Pipeline = (
    LatentDiffusion | ImageToImage | Inpainting | InstructedEditing | ControlledDiffusion | AudioDiffusion
    | VideoDiffusion
)  # fmt: skip


def load_pipeline(
    directory: str | os.PathLike,
    dtype: str = "float32",
    param_dtype: str | None = None,
    skip: Sequence[str] = (),
    mesh: Mesh | None = None,
) -> Pipeline:
    """Reads a pipeline of diffusers.

    Args:
        directory: holds model_index.json and a folder for each part.
        dtype, param_dtype: of computation and of the weights; an autoencoder's stay float32.
        skip: names of parts that the pipeline has and that are to be left out, such as "safety_checker".
        mesh: what to place the weights on; the rows of a call are then split over it, see `on_mesh`.

    Raises:
        FileNotFoundError: the index or a part's files are not there.
        ConfigError: another pipeline, or parts that are not here and not in `skip`; they are named. Also widths that
            the mesh does not divide.
        WeightsError: see `mmjax.interop.diffusers.load`.
    """
    place = Path(directory)
    index = read_index(place)
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ConfigError(
            f"{place}/{INDEX}: pipeline {name!r} is not supported.{nearest(str(name), PIPELINES)} "
            f"Supported are {', '.join(PIPELINES)}"
        )
    pipeline = PIPELINES[name]
    check_parts(place, index, pipeline.PARTS, skip)
    if mesh is None:
        return pipeline.load(place, dtype, param_dtype or dtype)
    with on_host():
        model = pipeline.load(place, dtype, param_dtype or dtype)
    return on_mesh(model, mesh)
