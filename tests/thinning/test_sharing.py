"""Which masks the groups have: pinned, in micro-batches, on processes, recomputed, compiled."""

import copy

import pytest
import ranks
import torch
from steps import CLOSE, X, cnn, mlp, step, whole, worst
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import processes
import puredrop
from puredrop.compact.kept import Kept
from puredrop.thinning import _layers


@pytest.fixture
def drawn(monkeypatch):
    """The masks of each use, (groups, units)."""
    found = []
    draw = _layers.draw

    def watched(site, shape, device):
        mask = draw(site, shape, device)
        found.append(mask.kept.position >= 0)
        return mask

    monkeypatch.setattr(_layers, "draw", watched)
    return found


def pinned(groups, seed=3, **named):
    model = mlp(input_p=0.2)
    puredrop.batchwise(model, groups, **named)
    return model, puredrop.reproducible(model, seed)


def contract(site, step, call, ids, units, p):
    """The contract's masks of some samples of a pinned site."""
    key = puredrop.Key(3).fold_in("").fold_in(site).fold_in(step).fold_in(call)
    return puredrop.keep_mask((len(ids), units), p, key, sample_ids=torch.tensor(ids))


def test_a_groups_mask_is_the_contracts_of_its_first_sample(drawn):
    model, run = pinned(5)
    run.step = 4
    model(X)
    starts = [0, 4, 9, 14, 19]
    for mask, (site, units, p) in zip(drawn, [("0", 20, 0.2), ("3", 48, 0.5), ("6", 40, 0.3)], strict=True):
        assert torch.equal(mask, contract(site, 4, 0, starts, units, p))


def test_of_channels(drawn):
    model = cnn()
    puredrop.batchwise(model, 2)
    puredrop.reproducible(model, 3)
    model(torch.randn(6, 3, 9, 9))
    assert torch.equal(drawn[0], contract("2", 0, 0, [0, 3], 20, 0.5))
    assert torch.equal(drawn[2], contract("8", 0, 0, [0, 3], 16, 0.5))


def test_tokens_in_front_do_not_matter(drawn):
    model = mlp()
    puredrop.batchwise(model, 2, sample_dim=1)
    run = puredrop.reproducible(model, 3, sample_dim=1)
    run.batch_size = 6
    model(torch.randn(7, 6, 20))
    assert torch.equal(drawn[0], contract("2", 0, 0, [0, 3], 48, 0.5))


def test_drop_in_masks_follow_the_generator(drawn):
    """One key for each use, in the order in which the layers drop, as any dropout draws it."""
    model = mlp(input_p=0.2)
    puredrop.batchwise(model, 3)
    torch.manual_seed(8)
    model(X)
    torch.manual_seed(8)
    for mask, p in zip(drawn, (0.2, 0.5, 0.3), strict=True):
        key = torch.randint(-(2**63), 2**63 - 1, ())
        assert torch.equal(mask, puredrop.keep_mask(mask.shape, p, key, sample_ids=torch.tensor([0, 8, 16])))
    assert drawn[1].float().mean() != drawn[2].float().mean()


def test_micro_batches_are_the_batch():
    outputs = []
    for groups, parts in ((6, 1), (3, 2), (2, 3), (1, 6)):
        model, _ = pinned(groups)
        outputs.append(torch.cat([model(part) for part in X.chunk(parts)]))
    assert all(torch.allclose(one, outputs[0], rtol=1e-5, atol=1e-6) for one in outputs)


def test_named_samples(drawn):
    model, run = pinned(2)
    run.sample_ids = torch.arange(24) * 7 + 3
    model(X)
    assert torch.equal(drawn[1], contract("3", 0, 0, [3, 12 * 7 + 3], 48, 0.5))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes saw, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    done = processes.run(ranks.__file__, folder, "own", "same", size=2)
    assert done.returncode == 0, done.stderr
    return {
        case: [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in range(2)]
        for case in ("own", "same")
    }


class TestRanks:
    def test_groups_of_each_process(self, seen):
        """Two processes with two groups each are one with four."""
        model, run = pinned(2 * ranks.GROUPS)
        expected = ranks.train(model, lambda x: [x], 2 * ranks.ROWS, run)
        for i, output in enumerate(expected["outputs"]):
            found = torch.cat([rank["outputs"][i] for rank in seen["own"]])
            torch.testing.assert_close(found, output, rtol=1e-5, atol=1e-6)
        for rank in seen["own"]:
            for name, value in expected["weights"].items():
                torch.testing.assert_close(rank["weights"][name], value, rtol=1e-5, atol=1e-6)

    def test_the_same_on_all(self, seen):
        """The same rows give the same outputs; two micro-batches of a step have masks of their own."""
        first, second = seen["same"]
        assert all(torch.equal(a, b) for a, b in zip(first["outputs"], second["outputs"], strict=True))
        assert len(first["outputs"]) == 2 * ranks.STEPS
        model, run = pinned(ranks.GROUPS, ranks="same")
        alone = ranks.train(model, lambda x: x.chunk(2), 2 * ranks.ROWS, run)
        torch.testing.assert_close(first["outputs"][0], alone["outputs"][0])

    def test_micro_batches_of_the_same_networks_differ(self, drawn):
        model, _ = pinned(1, ranks="same")
        model(X)
        model(X)
        assert not torch.equal(drawn[1], drawn[4])

    def test_without_a_pinned_model(self):
        model = mlp()
        puredrop.batchwise(model, 2, ranks="same")
        with pytest.raises(RuntimeError, match="ranks is 'same', but this process draws keys of its own; expected"):
            model(X)

    def test_with_named_samples(self):
        model, run = pinned(2, ranks="same")
        run.sample_ids = torch.arange(24)
        with pytest.raises(RuntimeError, match=r"ranks is 'same', but masks follow run\.sample_ids"):
            model(X)


def test_a_model_that_is_pinned_already():
    model = mlp()
    run = puredrop.reproducible(model)
    with pytest.raises(ValueError, match=r"model is pinned; call batchwise first: run\.release"):
        puredrop.batchwise(model)
    run.release()
    puredrop.batchwise(model)


def test_our_layers_may_be_pinned_before(drawn):
    model = puredrop.convert(mlp())
    puredrop.reproducible(model, 3)
    puredrop.batchwise(model, 2)
    model(X)
    assert torch.equal(drawn[0], contract("2", 0, 0, [0, 12], 48, 0.5))


class Recomputed(nn.Module):
    def __init__(self, model, run):
        super().__init__()
        self.model, self.run = model, run

    def forward(self, x):
        return self.run(self.model, x)


RECOMPUTE = [
    lambda reentrant: lambda model, x: checkpoint(model, x, use_reentrant=reentrant),
    # The second cut goes through the middle of a chain.
    lambda reentrant: lambda model, x: checkpoint_sequential(model, 3, x, use_reentrant=reentrant),
]


@pytest.mark.parametrize("is_pinned", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_checkpointing(recompute, reentrant, is_pinned):
    plain = Recomputed(mlp(input_p=0.2), lambda model, x: model(x))
    other = Recomputed(copy.deepcopy(plain.model), recompute(reentrant))
    for model in (plain, other):
        puredrop.batchwise(model.model, 3)
        if is_pinned:
            puredrop.reproducible(model, 3)
    assert worst(step(other, X), step(plain, X)) == 0


class TestCompiled:
    """Compiled code runs whole layers under the same masks."""

    @pytest.mark.parametrize("make", [lambda: mlp(input_p=0.2), cnn])
    def test_one_graph_of_the_same_masks(self, make):
        model = make()
        x = X if isinstance(model[0], nn.Dropout) else torch.randn(6, 3, 9, 9)
        expected = step(whole(model, 3), x)
        puredrop.batchwise(model, 3)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        output, _ = step(compiled, x)
        assert worst((output, {}), (expected[0], {})) < CLOSE

    def test_pinned(self):
        model, _ = pinned(2)
        expected = model(X)
        other, _ = pinned(2)
        torch._dynamo.reset()
        compiled = torch.compile(other, backend="aot_eager")
        torch.testing.assert_close(compiled(X), expected, rtol=1e-5, atol=1e-6)

    def test_transforms(self):
        model = mlp()
        parameters = dict(model.named_parameters())
        puredrop.batchwise(model, 2)

        def loss(values):
            torch.manual_seed(4)
            return torch.func.functional_call(model, values, X).square().sum()

        found = torch.func.grad(loss)(parameters)
        loss(parameters).backward()
        for name, value in found.items():
            torch.testing.assert_close(value, parameters[name].grad, rtol=1e-4, atol=1e-4)


class Other(torch.Tensor):
    """Weights of a class that nothing here knows, as DTensors are."""


def test_weights_of_another_class_run_whole():
    model = mlp()
    expected = step(whole(model, 3), X)
    for i in (0, 3, 6):
        model[i].weight = nn.Parameter(model[i].weight.detach().as_subclass(Other))
    puredrop.batchwise(model, 3)
    output, gradients = step(model, X)
    assert worst((output.as_subclass(torch.Tensor), {}), (expected[0], {})) < CLOSE
    for name, value in expected[1].items():
        assert (gradients[name].as_subclass(torch.Tensor) - value).abs().max() < 1e-3


def test_shapes_alone():
    model = mlp(input_p=0.2).to("meta")
    puredrop.batchwise(model, 3)
    assert model(X.to("meta")).shape == (24, 5)


def test_a_mask_of_another_device_type_is_listed_too():
    """What serves devices other than the CPU, run here."""
    keep = torch.rand(3, 30) > 0.5
    from puredrop.compact import kept as _kept

    kept, library = Kept.from_mask(keep), _kept.library
    try:
        _kept.library = lambda: None
        other = Kept.from_mask(keep)
    finally:
        _kept.library = library
    assert torch.equal(kept.position, other.position)
    assert torch.equal(kept.counts, other.counts)
