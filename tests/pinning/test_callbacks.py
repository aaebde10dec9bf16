"""The callbacks of Hugging Face's Trainer and of Lightning: one process, two, and a resumed run have the same masks."""

import pytest
import work
from nets import same
from test_processes import gathered, launch, seen, worst

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore")]  # of the libraries' own


@pytest.mark.integration
def test_hugging_face(tmp_path, record_property):
    pytest.importorskip("transformers")
    alone = work.hugging_face(tmp_path, rows_at_once=8)
    assert len(alone["masks"]) == 12  # 48 rows, 8 at once, 2 epochs
    assert not same(alone["masks"][0], alone["masks"][2])  # the next step
    launch(["hugging_face"], 2, tmp_path)
    ranks = seen("hugging_face", 2, tmp_path)
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


def test_a_training_that_was_broken_off_can_begin_again():
    from puredrop.callbacks._pinning import Pinning

    model, pinning = work.net(), Pinning(1, "", {})
    pinning.begin(model, 0, 1, "batches")
    pinning.begin(model, 5, 1, "batches")
    assert pinning.run.step == 5
    pinning.end()
    pinning.end()
    assert model.blocks[0].ours.key is None


def test_lightning_lets_go_of_a_module_that_failed(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    from puredrop.callbacks.lightning import Reproducible

    class Fails(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = work.net(work.MLP)

        def training_step(self, rows, index):
            if index:
                raise ZeroDivisionError
            return self.net(rows["x"]).sum()

        def configure_optimizers(self):
            return work.torch.optim.SGD(self.parameters(), lr=0.01)

    module = Fails()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, callbacks=[Reproducible(1)], enable_model_summary=False, **quiet)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, work.torch.utils.data.DataLoader(work.Rows(), 8))
    assert module.net.drop.key is None
    assert not module._forward_hooks


@pytest.mark.integration
def test_lightning(tmp_path, record_property):
    pytest.importorskip("lightning")
    alone = work.lightning(tmp_path, rows_at_once=8)
    assert len(alone["masks"]) == 12
    launch(["lightning"], 2, tmp_path)
    ranks = seen("lightning", 2, tmp_path)
    for found, whole in zip(gathered(ranks, "rows"), alone["masks"], strict=True):
        assert same(found, whole)
    difference = worst(ranks[0]["weights"], alone["weights"])
    record_property("largest difference of a final weight", difference)
    assert difference < 1e-6
