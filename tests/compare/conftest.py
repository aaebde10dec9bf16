"""Runs of `compare` that are not looked into: `test_sweep.py` and `test_explain_command.py` have whole ones."""

import pytest

from puredrop.compare import run
from puredrop.explain._account import Account


@pytest.fixture(autouse=True, scope="module")
def _not_looked_into(request):
    """What `explain` says of a network takes ten seconds a run."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_sweep":
            patch.setattr(run, "account", lambda asked, but: Account("", (), (), {"model": "not in this test"}))
        yield
