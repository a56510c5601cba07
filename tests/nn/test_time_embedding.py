"""Waves of a time, against diffusers."""

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from mmjax.nn.time_embedding import frequencies


@pytest.mark.parametrize(("sine_first", "shift"), [(False, 0.0), (True, 1.0)])
def test_equal_diffusers(sine_first, shift):
    times = np.array([0.0, 3.5, 999.0], np.float32)
    wanted = get_timestep_embedding(torch.tensor(times), 14, flip_sin_to_cos=not sine_first, downscale_freq_shift=shift)
    np.testing.assert_allclose(frequencies(times, 14, sine_first, shift), wanted, atol=1e-4)
