"""docs/calls.md is what tools/calls.py writes."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_all_calls_is_up_to_date():
    spec = importlib.util.spec_from_file_location("calls", ROOT / "tools" / "calls.py")
    calls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(calls)
    assert calls.tables() == (ROOT / "docs" / "calls.md").read_text(), "run python tools/calls.py"


def test_the_analysis_is_described_as_a_call():
    (line,) = [
        line
        for line in (ROOT / "docs" / "calls.md").read_text().splitlines()
        if line.startswith("| `puredrop.explain(model")
    ]
    assert "| Analyse what dropout did to a trained model" in line
