"""What every test runs under."""

import logging
import os

import pytest
import torch
from hypothesis import settings

from puredrop import _backend

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=1000)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several workers wait for each other in turns: on 2 cores `explain` then takes ten times as long. What
    # tests start by themselves has as many, since sums round by the number of threads.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

settings.load_profile(os.environ.get("PUREDROP_TEST_PROFILE", "fixed"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20_261_123)


@pytest.fixture
def quiet():
    """No lines in the log, where other libraries' loops say much."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def unexplained():
    """Runs of `compare` without the explanation of a network; `compare/test_sweep.py` has a whole one."""
    import quick

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick.run, "analyse", quick.unexplained)
        yield


def _forget():
    _backend.backend.cache_clear()
    _backend.library.cache_clear()


@pytest.fixture
def use():
    """Choose a backend, or an instruction set of the compiled one, as the environment does; until the test ends."""
    before = {name: os.environ.get(name) for name in ("PUREDROP_BACKEND", "PUREDROP_ISA")}

    def choose(**chosen):
        for name in before:
            os.environ.pop(name, None)
        os.environ.update({f"PUREDROP_{name.upper()}": value for name, value in chosen.items()})
        _forget()
        _backend.library()

    yield choose
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _forget()
    _backend.library()


def _variants():
    """What this machine runs, asked of the library itself."""
    saved = os.environ.get("PUREDROP_ISA")
    os.environ["PUREDROP_ISA"] = "?"
    _forget()
    try:
        _backend.library()
    except ValueError as error:
        text = str(error)
    finally:
        os.environ.pop("PUREDROP_ISA")
        if saved is not None:
            os.environ["PUREDROP_ISA"] = saved
        _forget()
    return text.split("this machine runs: ")[1].split(" (")[0].split(", ") if "machine runs" in text else []


@pytest.fixture(params=_variants())
def variant(request, use):
    """Every instruction set that this machine runs, in turn."""
    use(isa=request.param)
    return request.param
