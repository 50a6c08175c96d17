"""Every test on a GPU needs Triton, and ends when the GPU has done its work."""

import pytest
import torch


@pytest.fixture(autouse=True)
def triton():
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    yield
    torch.cuda.synchronize()
