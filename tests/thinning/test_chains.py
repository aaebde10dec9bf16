"""What is found in a model, what is left and why, and the way back."""

import copy
import io
import json
import pickle
import re
import warnings

import pytest
import torch
from steps import CLOSE, Written, X, cnn, difference, mlp, step, worst
from torch import nn

import puredrop
from puredrop.thinning._layers import BatchwiseLayer


def report(model, groups=2, **named):
    return puredrop.batchwise(model, groups, report=True, **named)[1]


class Net(nn.Module):
    """A forward given as a function of the module and x."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def linear(a=20, b=20):
    return nn.Linear(a, b)


def left(forward, **layers):
    """Why the layer `drop` is left, in a model that has something to compact besides."""
    more = nn.Sequential(linear(), nn.ReLU(), nn.Dropout(0.5), linear())
    model = Net(lambda self, x: forward(self, self.more(x)), more=more, **layers)
    return report(model).skipped["drop"]


class TestLeft:
    def test_batch_norm_between(self):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten(), linear())
        with pytest.raises(ValueError, match="BatchNorm2d stands before it, whose running statistics need every chann"):
            report(net)

    def test_single_elements_of_maps(self):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3))
        with pytest.raises(ValueError, match="it drops single elements of maps; Dropout1d to Dropout3d drop channels"):
            report(net)

    def test_a_residual_stream(self):
        why = left(lambda self, x: x + self.drop(self.a(x)), a=linear(), drop=nn.Dropout(0.1))
        assert why == "not only layers with weights read its output, and no activation comes before it"

    def test_values_that_are_read_before_they_are_dropped(self):
        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.drop(h) + h

        why = left(forward, a=linear(), drop=nn.Dropout(0.5))
        assert "is read elsewhere, too" in why

    def test_a_layer_called_twice(self):
        why = left(lambda self, x: self.drop(torch.relu(self.a(self.a(x)))), a=linear(), drop=nn.Dropout(0.5))
        assert why == "a is called several times"

    def test_hooks(self):
        drop, a = nn.Dropout(0.5), linear()
        drop.register_forward_hook(lambda *_: None)
        says = "it has hooks, which would see thinned values"
        assert left(lambda self, x: self.drop(torch.relu(self.a(x))), a=a, drop=drop) == says
        a.register_forward_pre_hook(lambda *_: None)
        assert "Linear has hooks" in left(lambda self, x: self.drop(torch.relu(self.a(x))), a=a, drop=nn.Dropout(0.5))

    def test_subclasses_and_parametrized_layers(self):
        class Mine(nn.Linear):
            def forward(self, x):
                return super().forward(x) + 1

        why = left(lambda self, x: self.drop(torch.relu(self.a(x))), a=Mine(20, 20), drop=nn.Dropout(0.5))
        assert why == "add stands before it; expected Linear and an elementwise activation"
        normed = nn.utils.parametrizations.weight_norm(linear())
        why = left(lambda self, x: self.drop(torch.relu(self.a(x))), a=normed, drop=nn.Dropout(0.5))
        assert "ParametrizedLinear stands before it" in why

    @pytest.mark.parametrize("kind", [nn.AlphaDropout, puredrop.nn.DropPath])
    def test_other_dropout(self, kind):
        why = left(lambda self, x: self.drop(torch.relu(self.a(x))), a=linear(), drop=kind(0.5))
        assert why == f"{kind.__name__} drops neither single units of a Linear nor channels of a convolution"

    def test_shared_dims(self):
        drop = puredrop.nn.Dropout(0.5, shared_dims=(0,))
        assert "shared_dims" in left(lambda self, x: self.drop(torch.relu(self.a(x))), a=linear(), drop=drop)

    def test_convolutions_that_cannot_be_cut(self):
        for conv in (nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")):
            net = nn.Sequential(conv, nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten())
            with pytest.raises(ValueError, match="has groups or a padding other than zeros"):
                report(net)
        net = nn.Sequential(nn.Conv2d(8, 8, 2, padding="same"), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten())
        with pytest.raises(ValueError, match="pads more on one side"):
            report(net)

    def test_a_forward_that_branches_on_values(self):
        def forward(self, x):
            return self.drop(torch.relu(self.a(x))) if x.mean() > 0 else x

        class Branching(Net):
            pass

        inner = Branching(forward, a=linear(), drop=nn.Dropout(0.5))
        outer = nn.Sequential(mlp((20, 30, 20), (0.5,)), inner)
        found = report(outer)
        assert found.skipped["1.drop"].startswith("the forward of 1 cannot be followed (symbolically traced variables")
        assert {chain.path for chain in found.chains} == {"0.2"}  # what can be is, all the same

    def test_functions(self):
        model = Net(
            lambda self, x: self.more(nn.functional.dropout(torch.relu(self.a(x)), 0.5)),
            a=linear(),
            more=mlp((20, 30, 20), (0.5,)),
        )
        assert report(model).skipped == {
            ":dropout0": "it is a function call, which batchwise cannot change; make it a layer, torch.nn.Dropout"
        }

    def test_a_layer_that_is_not_called(self):
        why = left(lambda self, x: self.a(x), a=linear(), drop=nn.Dropout(0.5))
        assert why == "the forward does not call it"

    def test_a_layer_in_two_places_one_of_which_cannot_be(self):
        """There it draws for each sample, as ever."""

        def forward(self, x):
            x = x + self.drop(self.a(x))
            return self.c(self.drop(torch.relu(self.b(x))))

        model = Net(forward, a=linear(), b=linear(), c=linear(), drop=nn.Dropout(0.5))
        found = report(model, 1)
        assert "drop" in found.skipped
        assert {chain.path for chain in found.chains} == {"drop"}
        kept = []
        model.a.register_forward_hook(lambda *_: torch.ones(64, 20))
        model.b.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        model(torch.zeros(64, 20))
        assert len(kept[0].unique(dim=0)) > 60


def test_a_layer_in_two_places_one_of_which_is_read_by_no_layer():
    """What is kept is put in its place for both."""

    def forward(self, x):
        h = self.drop(torch.relu(self.a(x)))
        return self.drop(torch.tanh(self.b(h))) + 1

    model = Net(forward, a=linear(), b=linear(), drop=nn.Dropout(0.5))
    assert difference(model, X, 3) < CLOSE


def test_what_is_done_and_said():
    model = mlp(input_p=0.2)
    found = report(model, "auto")
    assert found.work == {"1": pytest.approx(0.8 * 0.5), "4": pytest.approx(0.5 * 0.7), "7": pytest.approx(0.7)}
    assert (found.count(1024), found.count(128), found.count(8, 4096)) == (8, 1, 8)
    lines = str(found).splitlines()
    assert lines[:3] == [
        "masks of 3 dropout layers shared, groups: auto: one for every 128 rows of a batch, at most 16",
        "  1: 40 % of its work remains",
        "  4: 35 % of its work remains",
    ]
    assert lines[-1].startswith("cost: ")


def test_a_report_for_other_programs():
    model = Net(lambda self, x: self.net(nn.functional.dropout(x, 0.5)), net=mlp())
    found = report(model)
    assert json.loads(found.to_json()) == found.to_dict()
    assert found.to_dict()["work"] == found.work
    frame = found.frame()
    assert frame.set_index("path")["work"].to_dict() == {**found.work, **dict.fromkeys(found.skipped, 1.0)}
    assert list(frame.columns) == ["path", "work", "reason"]


def test_the_last_batch_of_an_epoch_may_be_smaller_than_the_number_of_groups():
    assert difference(mlp(), X[:5], 8) < CLOSE


def test_nothing_to_compact():
    says = (
        "model has nothing to compact: expected Linear or convolution, elementwise activation, Dropout (of channels "
        "after a convolution), Linear or convolution; it has no dropout layer"
    )
    with pytest.raises(ValueError, match=re.escape(says)):
        report(nn.Sequential(linear(), nn.ReLU()))
    with pytest.raises(TypeError, match=r"model is list; expected a torch.nn.Module"):
        report([])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"ranks is 'all'; expected 'own' or 'same'"):
        report(mlp(), ranks="all")
    with pytest.raises(ValueError, match="groups is 0"):
        report(mlp(), 0)
    model = mlp()
    report(model, 8)
    with pytest.raises(ValueError, match=r"model runs batchwise already"):
        report(model)


def test_inputs_without_samples():
    model = mlp()
    report(model)
    with pytest.raises(RuntimeError, match=r"input has shape \(20,\); expected samples in dimension 0, units in the"):
        model(X[0])
    model = cnn()
    report(model)
    with pytest.raises(RuntimeError, match=r"input has shape \(3, 9, 9\); expected samples in dimension 0, channels"):
        model(torch.randn(3, 9, 9))


def test_a_forward_that_changed_is_an_error():
    """Nothing but what was seen reads thinned values."""
    model = Written()
    report(model)
    for forward in (
        lambda x: model.c(model.drop(model.a(x) + 1)),
        lambda x: model.drop(torch.relu(model.a(x)).softmax(-1)),
        lambda x: torch.cat([model.a(x), x], -1),
    ):
        with pytest.raises(RuntimeError, match="on the thinned output of a layer"):
            forward(X)
    with pytest.raises(RuntimeError, match="another view was called on the thinned output"):
        _ = model.a(X).mT
    with pytest.raises(RuntimeError, match="on the thinned output of a layer"):
        model.drop(torch.relu(model.a(X))).relu()  # between dropout and its reader
    other = Written()
    report(other)
    with pytest.raises(RuntimeError, match="reached another dropout layer than the next one"):
        other.drop(model.a(X))


class TestBack:
    def test_revert(self):
        for undo in (lambda model, found: found.revert(), lambda model, found: puredrop.revert(model)):
            model = mlp(input_p=0.2)
            expected = step(copy.deepcopy(model), X)
            attributes = [dict(vars(m)) for m in model.modules()]
            found = report(model)
            step(model, X)
            undo(model, found)
            assert [type(m) for m in model] == [type(m) for m in mlp(input_p=0.2)]
            assert [set(vars(m)) for m in model.modules()] == [set(one) for one in attributes]
            assert worst(step(model, X), expected) == 0

    def test_nothing_of_a_pinned_run_is_left(self):
        model = mlp()
        found = report(model)
        puredrop.reproducible(model).release()
        found.revert()
        assert "key" not in vars(model[2])

    def test_our_layers_are_ours_again(self):
        model = puredrop.convert(mlp())
        model[2].set_key(puredrop.Key(3))
        found = report(model)
        found.revert()
        assert type(model[2]) is puredrop.nn.Dropout
        assert model[2].key == puredrop.Key(3)

    def test_revert_of_a_copy_leaves_the_model(self):
        model = mlp()
        report(model)
        other = puredrop.revert(model, inplace=False)
        assert isinstance(model[0], BatchwiseLayer)
        assert not any(isinstance(m, BatchwiseLayer) for m in other.modules())

    def test_convert_leaves_them(self):
        model = mlp()
        report(model)
        puredrop.convert(model)
        assert all(isinstance(model[i], BatchwiseLayer) for i in (0, 2, 3))

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, copied):
        model = mlp()
        report(model)
        step(model, X)
        other = copied(model)
        assert worst(step(other, X), step(model, X)) == 0
        assert other[0].role.dropout is other[2]
        assert other[0].weight is not model[0].weight

    def test_saved_weights_load_into_any(self):
        model, plain = mlp(), mlp((20, 48, 40, 5))
        report(model)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        plain.load_state_dict(torch.load(file, weights_only=True))


def test_looking_leaves_the_model_and_the_generator():
    class Counts(Net):
        pass

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        self.last = x
        return self.drop(torch.relu(self.a(x + torch.rand(1))))

    model = Counts(forward, a=linear(), drop=nn.Dropout(0.5))
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(model, "calls")
    assert not hasattr(model, "last")


def test_looking_leaves_buffers():
    """What a forward counts in its buffers is not counted."""

    def forward(self, x):
        self.seen.add_(1)
        return self.drop(torch.relu(self.a(x)))

    model = Net(forward, a=linear(), drop=nn.Dropout(0.5))
    model.register_buffer("seen", torch.zeros(()))
    report(model)
    assert model.seen == 0
    model(X)
    assert model.seen == 1


def test_convolutions_have_their_samples_first():
    """Whatever is said of the Linear layers beside them."""
    model = nn.Sequential(cnn()[:6], nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(96, 3))
    found = report(model, sample_dim=1)
    assert {chain.path: chain.sample_dim for chain in found.chains} == {"0.2": 0, "0.5": 0, "3": 1}


def test_functions_of_named_and_several_values_are_no_activation():
    for function in (
        lambda x, y: torch.relu(input=x),
        lambda x, y: nn.functional.leaky_relu(x, y),
    ):
        why = left(lambda self, x, f=function: self.drop(f(self.a(x), x.mean())), a=linear(), drop=nn.Dropout(0.5))
        assert "stands before it" in why


def test_wrapped_models():
    model = mlp()
    report(torch.compile(model, backend="eager"))
    assert isinstance(model[0], BatchwiseLayer)


def test_repr():
    model = mlp()
    report(model)
    assert str(model[0]) == "BatchwiseLinear(in_features=20, out_features=48, bias=True)"
    assert str(model[2]).startswith("BatchwiseDropout(p=0.5, inplace=False")


def test_our_layers_and_keys():
    model = puredrop.convert(mlp())
    for layer in (model[2], model[5]):
        layer.set_key(puredrop.Key(7))
    assert difference(model, X, 3) < CLOSE
