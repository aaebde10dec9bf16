"""Other libraries, where they are installed; a test that needs one that is not skips by its name."""

import importlib.util

import pytest
import torch


def _declare_torchvisions_operators():
    """Let torchvision be imported where its compiled operators cannot be loaded: a CUDA wheel beside a CPU torch.

    It declares them for the compiler at import and fails if they do not exist. None of them is used here.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@pytest.fixture(scope="session")
def library():
    """A library by its name."""
    kept = []
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            kept.append(_declare_torchvisions_operators())

    def find(name):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install 'puredrop[libraries,vision]'")
        return importlib.import_module(name)

    yield find
    kept.clear()
