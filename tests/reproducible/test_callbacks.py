"""The callbacks of Hugging Face's Trainer and of Lightning: one process, two, and a resumed run have the same masks."""

import logging

import pytest
import work
from nets import same
from test_processes import gathered, launch, worst

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_hugging_face(tmp_path, record_property):
    pytest.importorskip("transformers")
    alone = work.hugging_face(tmp_path, rows_at_once=8)
    assert len(alone["masks"]) == 12  # 48 rows, 8 at once, 2 epochs
    assert not same(alone["masks"][0], alone["masks"][2])  # the next step
    ranks = launch("hugging_face", 2, tmp_path)
    for found, whole in zip(gathered(ranks), alone["masks"], strict=True):
        assert same(found, whole)
    difference = worst(ranks[0]["weights"], alone["weights"])
    record_property("largest difference of a final weight", difference)
    assert difference < 1e-6


def test_hugging_face_resumes(tmp_path):
    pytest.importorskip("transformers")
    alone = work.hugging_face(tmp_path, rows_at_once=8)
    resumed = work.hugging_face(tmp_path, rows_at_once=8, resume=True)
    assert all(same(a, b) for a, b in zip(resumed["masks"], alone["masks"], strict=True))
    assert worst(resumed["weights"], alone["weights"]) < 1e-6


def test_lightning(tmp_path, record_property):
    pytest.importorskip("lightning")
    alone = work.lightning(tmp_path, rows_at_once=8)
    assert len(alone["masks"]) == 12
    ranks = launch("lightning", 2, tmp_path)
    for found, whole in zip(gathered(ranks, "rows"), alone["masks"], strict=True):
        assert same(found, whole)
    difference = worst(ranks[0]["weights"], alone["weights"])
    record_property("largest difference of a final weight", difference)
    assert difference < 1e-6
