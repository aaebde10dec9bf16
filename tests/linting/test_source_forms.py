"""Forms of code that a hostile reading found: layers in loops, methods of base classes, noise in training loops."""

import pytest
from sources import found, method

DROPS_BY_FLAG = method("return F.dropout(x, .1, training)", arguments="self, x, training=True").replace("A(", "D(")


@pytest.mark.parametrize(
    ("init", "body", "codes"),
    [
        ("self.ds = nn.ModuleList([D(), D()])", "for i, d in enumerate(self.ds):\n    x = d(x)\nreturn x", ["PD101"]),
        ("self.ds = nn.ModuleList([D()])", "for d, y in zip(self.ds, x):\n    x = d(y)\nreturn x", ["PD101"]),
        ("self.ds = nn.ModuleList([D()])", "for d in self.ds:\n    x = d(x, self.training)\nreturn x", []),
        ("self.p = p", "return F.dropout(x, (0., self.p)[self.training])", []),
        ("self.p = p", "d = nn.Dropout(.1)\nd.train(self.training)\nreturn d(x)", []),
        ("self.n = p", "if self.training or self.n > 1:\n    x = F.dropout(x, .1)\nreturn x", ["PD101"]),
    ],
)
def test_further_forms(init, body, codes):
    assert found(DROPS_BY_FLAG + method(body, init)) == codes


@pytest.mark.parametrize("call", ["super().reg(x, True)", "super(B, self).reg(x)", "A.reg(self, x, True)"])
def test_a_method_of_a_base_class(call):
    base = method("return F.dropout(x, .1, training)", name="reg", arguments="self, x, training=True")
    derived = method(f"return {call}").replace("A(nn.Module)", "B(A)")
    assert found(base + derived) == ["PD101"]
    assert found(base + derived.replace("True", "self.training").replace("reg(x)", "reg(x, self.training)")) == []


@pytest.mark.parametrize("name", ["train", "train_epoch", "fit", "collate"])
def test_noise_in_a_training_loop(name):
    assert found(f"def {name}(model, batch):\n    return model(F.dropout(batch, .1))\n") == []


def test_more_calls_than_are_followed_are_said():
    steps = "".join(f"def f{i}(x, training=True):\n    return f{i + 1}(x, training)\n" for i in range(9))
    last = "def f9(x, training=True):\n    return F.dropout(x, .1, training)\n"
    found_codes = found(steps + last + method("return f0(x)"))
    assert found_codes
    assert set(found_codes) <= {"PD101", "PD002"}
