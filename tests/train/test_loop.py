"""The loop: torch's loss curve, bit-for-bit resume, stops, finished stages, adapters, what lies in the folder."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.interop.huggingface.llama import LINEAR
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.train.loop import Prefetch, finished, run_stages, train_stage
from mmjax.train.metrics import read_metrics
from mmjax.train.panels import PanelSample
from mmjax.train.stage import StageConfig, flatten
