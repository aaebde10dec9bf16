"""The whole command on small runs: what it writes, what it refuses, and that a kill does not show."""

import json
import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import quick
import safetensors.torch
import torch
from torch import nn

from puredrop.cli import main
from puredrop.compare import run as run_module
from puredrop.compare.data import load
from puredrop.compare.network import Network
from puredrop.compare.training import Arm, train

pytestmark = pytest.mark.usefixtures("unexplained")
SMALL = ["--rows", "200", "--hidden", "32,16", "--rates", "0.5,0.3", "--seeds", "3", "--epochs", "4"]


def compare(out, *options):
    return main(["compare", "digits", "--out", str(out), *SMALL, *options])


def without_time(results):
    """The numbers, less those that say how long it took and when."""
    results = json.loads(json.dumps(results))
    del results["created"], results["checksum"]
    for arm in results["arms"].values():
        arm.pop("seconds_per_epoch")
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert compare(out) == 0
    return out


def read(out):
    return json.loads((out / "results.json").read_text())


def test_it_writes_results_page_and_weights_and_no_more(finished):
    names = sorted(path.name for path in finished.iterdir())
    assert names == ["report.html", "results.json", "weights-dropout.safetensors", "weights-none.safetensors"]


def test_the_results_say_what_was_measured(finished):
    results = read(finished)
    assert results["format"] == 2
    assert results["rows"] == {"train": 167, "validation": 33, "test": 599}
    for name, arm in results["arms"].items():
        for key in ("error", "nll", "calibration_error", "training_nll", "gap"):
            assert len(arm[key]["per_seed"]) == 3
            assert arm[key]["mean"] == pytest.approx(sum(arm[key]["per_seed"]) / 3)
        assert arm["gap"]["mean"] == pytest.approx(arm["nll"]["mean"] - arm["training_nll"]["mean"])
        assert set(arm["weight_norms"]) == {"0", "3", "6"}
        assert (arm["mc"] is None) == (name == "none")
        assert len(arm["history"]["validation_loss"]) == arm["epochs"] == 4
    means = {name: arm["nll"]["mean"] for name, arm in results["arms"].items()}
    assert results["differences"]["nll"]["estimate"] == pytest.approx(means["dropout"] - means["none"])
    mc = results["arms"]["dropout"]["mc"]["nll"]["mean"]
    assert results["differences"]["mc_nll"]["estimate"] == pytest.approx(mc - means["dropout"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "run"
    assert compare(out, "--arms", "none,dropout,batchwise,networks", "--groups", "3") == 0
    return out


def test_more_arms_leave_the_others(shared, finished):
    found, plain = without_time(read(shared)), without_time(read(finished))
    assert list(found["arms"]) == ["none", "dropout", "batchwise", "networks"]
    assert {name: found["arms"][name] for name in plain["arms"]} == plain["arms"]
    assert found["identity"]["groups"] == 3
    assert found["arms"]["batchwise"]["mc"] is None
    means = {name: arm["nll"]["mean"] for name, arm in found["arms"].items()}
    assert found["differences"]["batchwise_nll"]["estimate"] == pytest.approx(means["batchwise"] - means["dropout"])
    assert len(set(means.values())) == 4
    assert (shared / "weights-batchwise.safetensors").exists()


def test_five_networks_a_seed(shared):
    """Each seed's own network without dropout, and four more of other seeds; their probabilities averaged."""
    found = read(shared)
    none, others = (
        safetensors.torch.load_file(shared / f"weights-{name}.safetensors") for name in ("none", "networks")
    )
    assert [len(weights["0.weight"]) for weights in (none, others)] == [3, 12]
    network, data = Network((64, 32, 16, 10), (0.5, 0.3)), load("digits", rows=200)
    arm = Arm.start(network, range(3, 15), data.train.x, dropout=False)
    train(arm, network, data, range(3, 15), 4)
    torch.testing.assert_close(others, arm.best)
    test, model = load("digits").test, nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Identity(), nn.Linear(32, 16))
    model.extend([nn.ReLU(), nn.Identity(), nn.Linear(16, 10)])
    for seed in range(3):
        p = torch.zeros(599, 10)
        for weights, at in ((none, seed), *((others, place) for place in range(seed, 12, 3))):
            model.load_state_dict({name: value[at] for name, value in weights.items()})
            p += model(test.x).detach().softmax(1) / 5
        expected = -p[torch.arange(599), test.y].log().mean().item()
        assert found["arms"]["networks"]["nll"]["per_seed"][seed] == pytest.approx(expected, rel=1e-4)
    mc = found["arms"]["dropout"]["mc"]
    for key, path in (("nll", ("nll",)), ("error", ("error",)), ("area", ("selective_prediction", "area"))):
        ours, theirs = found["arms"]["networks"], mc
        for step in path:
            ours, theirs = ours[step], theirs[step]
        expected = ours["mean"] - theirs["mean"]
        assert found["differences"][f"networks_{key}"]["estimate"] == pytest.approx(expected)


def test_how_many_members_are_enough(finished):
    results = read(finished)
    found, dropout = results["members_needed"], results["arms"]["dropout"]
    assert found["members"] == [1, 2, 5, 10, 25, 50]
    nll = [one["mean"] for one in found["nll"]]
    assert nll == sorted(nll, reverse=True)  # the loss is convex: more members are better on average
    assert nll[-1] == dropout["mc"]["nll"]["mean"]
    for number, one, to_one_pass in zip(found["members"], nll, found["to_one_pass"], strict=True):
        assert to_one_pass["estimate"] == pytest.approx(one - dropout["nll"]["mean"])
        if number < 50:
            excess = found["excess"][found["members"].index(number)]
            assert excess["estimate"] == pytest.approx(one - nll[-1])
            assert (excess["high"] < 0.002) == (found["enough"] is not None and number >= found["enough"])


def keys_of(record, path=()):
    for key, value in record.items():
        yield key, (*path, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*path, key))


def test_every_key_of_the_results_is_documented(shared):
    text = (Path(__file__).parents[2] / "docs/compare.md").read_text()
    names = {key for key, path in keys_of(read(shared)) if "weight_norms" not in path[:-1]}
    assert len(names) > 40
    documented = set(re.findall(r"`(?:[\w…]+\.)*([\w.]+)`", text)) | {
        "none",
        "dropout",
        "batchwise",
        "networks",
        "arms",
    }
    assert names - documented == set()


def test_the_weights_load_into_the_plain_model_and_give_the_error_in_the_results(finished):
    weights = safetensors.torch.load_file(finished / "weights-dropout.safetensors")
    model = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10)
    ).eval()
    test = load("digits").test
    for seed in range(3):
        model.load_state_dict({name: value[seed] for name, value in weights.items()})
        error = (model(test.x).argmax(1) != test.y).double().mean().item()
        assert error == pytest.approx(read(finished)["arms"]["dropout"]["error"]["per_seed"][seed], abs=1.5 / 599)


def test_five_lines_and_silence_where_there_is_no_terminal(tmp_path, capsys):
    assert compare(tmp_path / "run") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["NLL", "error", "gap", "MC", "page"]
    assert lines[-1].endswith("run/report.html")
    assert err == ""


def test_float64_and_an_explicit_device(tmp_path, finished):
    assert compare(tmp_path / "run", "--dtype", "float64", "--device", "cpu") == 0
    weights = safetensors.torch.load_file(tmp_path / "run" / "weights-none.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float64}
    # The same masks and batches: the first epochs differ by rounding alone.
    curves = [read(out)["arms"]["dropout"]["history"]["validation_loss"][0] for out in (finished, tmp_path / "run")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0] != curves[1]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert compare(tmp_path / "run", "--tensorboard") == 0
    results = read(tmp_path / "run")
    for name in ("none", "dropout"):
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / name)).Reload()
        for kind in ("training", "validation"):
            written = [event.value for event in events.Scalars(f"loss/{kind}")]
            expected = [sum(epoch) / 3 for epoch in results["arms"][name]["history"][f"{kind}_loss"]]
            assert written == pytest.approx(expected, rel=1e-5)


def test_resume_without_an_unfinished_run_starts_and_with_a_finished_one_repeats_it(finished, tmp_path, capsys):
    assert compare(tmp_path / "new", "--resume") == 0
    first = capsys.readouterr().out
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert compare(finished, "--resume") == 0
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before
    again = capsys.readouterr().out
    assert again.splitlines()[:4] == first.splitlines()[:4]
    assert without_time(read(tmp_path / "new")) == without_time(read(finished))


def command(out, *options):
    return ["compare", "digits", "--out", str(out), *SMALL, *options]


def written_at(path):
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.fixture
def start_eager(monkeypatch, tmp_path):
    """Start `quick.eager` in a new process, forked from one that has imported everything already."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(quick.__file__).parent), os.environ.get("PYTHONPATH", "")])
    )
    context = multiprocessing.get_context("forkserver")
    heavy = ("scipy.stats", "sklearn.datasets", "sklearn.model_selection", "torch._dynamo")
    context.set_forkserver_preload(["quick", "torchmetrics.functional.classification", *heavy])

    def start(line):
        process = context.Process(target=quick.eager, args=(line, torch.get_num_threads(), tmp_path / "errors"))
        process.start()
        return process

    return start


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(tmp_path, start_eager):
    out, chance, kills = tmp_path / "run", random.Random(1), 0
    options = ["--epochs", "60"]
    assert compare(tmp_path / "whole", *options) == 0
    line = command(out, *options, "--resume")
    for _ in range(30):
        process = start_eager(line)
        deadline = time.monotonic() + 60
        before = written_at(out / "checkpoint.safetensors")
        while written_at(out / "checkpoint.safetensors") == before and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0 or kills == 3:
            break
    assert kills >= 2
    last = start_eager(line)
    last.join()
    assert last.exitcode == 0
    assert without_time(read(out)) == without_time(read(tmp_path / "whole"))
    for name in ("none", "dropout"):
        file = f"weights-{name}.safetensors"
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_ctrl_c_leaves_a_resumable_run_and_says_how(tmp_path, start_eager):
    out = tmp_path / "run"
    line = command(out, "--epochs", "100000")
    process = start_eager(line)
    while not (out / "checkpoint.safetensors").exists() and process.is_alive():
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    err = (tmp_path / "errors").read_text()
    assert err.splitlines()[-1] == f"stopped; go on with: puredrop {' '.join(line)} --resume"
    assert "Traceback" not in err
    assert (out / "checkpoint.safetensors").exists()


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A run stopped after its first epoch."""
    out = tmp_path / "run"

    def stop(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", stop)
        assert compare(out) == 130
    return out


def refused(capsys, code, message):
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_an_unfinished_run_is_not_overwritten(unfinished, capsys):
    capsys.readouterr()
    before = (unfinished / "checkpoint.safetensors").read_bytes()
    refused(capsys, compare(unfinished), r"holds an unfinished run; add --resume")
    assert (unfinished / "checkpoint.safetensors").read_bytes() == before
    assert compare(unfinished, "--resume") == 0


def test_resuming_with_other_options_is_refused_by_name(unfinished, capsys):
    capsys.readouterr()
    refused(capsys, compare(unfinished, "--resume", "--epochs", "9"), r"epochs is 9, but the unfinished run .* has 4")
    refused(capsys, compare(unfinished, "--resume", "--rows", "210"), r"data_digest is .*make them equal")


def test_a_corrupt_checkpoint_is_named_and_refused(unfinished, capsys):
    capsys.readouterr()
    path = unfinished / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    refused(capsys, compare(unfinished, "--resume"), r"checkpoint.safetensors is corrupt .*delete it to start again")
    assert path.read_bytes() == bytes(data)


def test_a_resumed_run_uses_the_threads_it_began_with(unfinished, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert compare(unfinished, "--resume") == 0
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)


BAD = [
    (["--rates", "0.5"], r"--rates has 1 entries \(0.5\), --hidden has 2 \(512,256\); give one rate per hidden layer"),
    (["--rates", "0.5,1.5"], r"--rates holds 1.5; expected rates in \[0, 1\)"),
    (["--rates", "0.5,nan"], r"--rates holds nan"),
    (["--rates", "0,0"], r"all 0; expected at least one above 0"),
    (["--rates", "a,b"], r"argument --rates: 'a,b'; expected numbers with commas between, such as 0.5,0.3"),
    (["--input-rate", "-1"], r"--input-rate holds -1.0"),
    (["--hidden", "0,256"], r"--hidden is 0,256; expected widths of at least 1"),
    (["--hidden", "8.5"], r"argument --hidden: '8.5'"),
    (["--rows", "5000"], r"--rows is 5000; expected 60 to 1198"),
    (["--epochs", "0"], r"--epochs is 0; expected at least 1"),
    (["--seeds", "1"], r"--seeds is 1; expected at least 2"),
    (["--data-dir", "/no/such"], r"digits come with scikit-learn"),
    (["--device", "cuda:77"], r"--device is 'cuda:77', which is not usable here"),
    (["--device", "toaster"], r"--device is 'toaster', which is not usable here"),
    (["--device", "meta"], r"--device is 'meta', which is not usable here"),
    (["--dtype", "int8"], r"argument --dtype: invalid choice: 'int8'"),
    (
        ["--arms", "none,batchwise"],
        r"--arms is none,batchwise; expected none,dropout, and then, in this order, any of batchwise,networks",
    ),
    (
        ["--arms", "none,dropout,networks,batchwise"],
        r"--arms is none,dropout,networks,batchwise; expected none,dropout",
    ),
    (["--arms", "none,dropout,dropout"], r"--arms is none,dropout,dropout; expected none,dropout"),
    (["--arms", "none,dropout,nets"], r"--arms is none,dropout,nets; expected none,dropout"),
    (["--groups", "4"], r"--groups is for the arm batchwise, which --arms does not name; drop the option"),
    (["--arms", "none,dropout,batchwise", "--groups", "0"], r"--groups is 0; expected 1 to 128, the rows of a batch"),
    (["--frobnicate"], r"unrecognized arguments: --frobnicate \(see puredrop --help\)"),
]


@pytest.mark.parametrize(
    ("options", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["compare", "digits", *options])
    except SystemExit as error:
        code = error.code
    refused(capsys, code, message)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_data_folder_or_name_or_output_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, main(["compare", "mnist", "--data-dir", "nowhere"]), r"--data-dir is 'nowhere', which is no folder")
    refused(capsys, main(["compare", "cifar"]), r"data is 'cifar'; expected digits, mnist, or a file")
    (tmp_path / "file").write_text("")
    refused(capsys, main(["compare", "--out", "file"]), r"--out is 'file', which is a file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path, capsys, monkeypatch):
    # Root may write anywhere, so the answer to "may I" is given here.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(capsys, compare(tmp_path / "run"), r"--out is '.*run', but .* is not writable")
    assert list(tmp_path.iterdir()) == []
