"""The watch in the loops of Hugging Face's Trainer and of Lightning, and on several processes."""

import json
import warnings

import pytest
import torch
import trainers

import processes
from puredrop import WatchWarning

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore")]  # of the libraries' own


def run(library, folder, mistake, **named):
    """Report and warnings of a training by a library's loop."""
    pytest.importorskip({"hugging_face": "transformers"}.get(library, library))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = getattr(trainers, library)(folder, mistake, **named)
    return report, [one for one in caught if issubclass(one.category, WatchWarning)]


LIBRARIES = pytest.mark.parametrize("library", ["hugging_face", "lightning"])


@LIBRARIES
def test_a_right_training(library, tmp_path):
    report, said = run(library, tmp_path, "none")
    assert report.ok, str(report)
    assert not said
    assert report.steps == {"hugging_face": 4, "lightning": 6}[library]
    assert report.training_forwards == 2 * report.steps
    assert report.evaluation_forwards >= 6


@LIBRARIES
@pytest.mark.parametrize("mistake", trainers.MISTAKES[1:])
def test_a_mistake_is_reported_once(library, mistake, tmp_path):
    report, said = run(library, tmp_path, mistake)
    place = "" if mistake == "callback" else "net"
    code = "PD601" if mistake == "training" else "PD602"
    assert [(one.code, one.place, one.step, one.rank) for one in report] == [(code, place, 2, None)], str(report)
    assert len(said) == 1


@LIBRARIES
def test_strict(library, tmp_path):
    with pytest.raises(RuntimeError, match="net: error PD601: dropout is off in a training step: step 2"):
        run(library, tmp_path, "training", strict=True)


def test_a_report_before_any_training():
    pytest.importorskip("transformers")
    from puredrop.callbacks.hugging_face import WatchCallback

    with pytest.raises(RuntimeError, match="no training has begun"):
        _ = WatchCallback().report


@pytest.mark.integration
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("library", ["ddp", "hugging_face", "lightning"])
def test_each_rank_reports_its_own(library, tmp_path):
    if library != "ddp":
        pytest.importorskip({"hugging_face": "transformers"}.get(library, library))
    cases = [f"{library}-none", f"{library}-training"]
    done = processes.run(trainers.__file__, tmp_path, *cases, size=2)
    assert done.returncode == 0, done.stderr
    right, wrong = ([json.loads((tmp_path / f"{case}-{rank}.json").read_text()) for rank in (0, 1)] for case in cases)
    assert [report["findings"] for report in right] == [[], []]
    assert wrong[0]["ok"]
    (finding,) = wrong[1]["findings"]
    assert (finding["code"], finding["rank"]) == ("PD601", 1)
    assert len(wrong[1]["said"]) == 1
    assert "rank 1" in wrong[1]["said"][0]
