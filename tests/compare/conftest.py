import pytest


@pytest.fixture(scope="module")
def unexplained():
    """Runs of `compare` without the explanation of a network; `test_sweep.py` has a whole one."""
    import quick

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick.run, "analyse", quick.unexplained)
        yield
