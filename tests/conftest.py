"""What every test runs under."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("PUREDROP_TEST_PROFILE", "fixed"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20_261_123)
