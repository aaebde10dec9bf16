"""Forms of code that a hostile reading found: layers in loops, methods of base classes, noise in training loops."""

import pytest
from sources import HEAD, found, method

from puredrop.linting.source import fix_text

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


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    from torch.nn.functional import dropout as d\nexcept ImportError:\n    d = None\n"
        + method("return d(x, .1)"),
        "d = getattr(F, 'dropout', None)\n" + method("return d(x, .1)"),
        "N = nn.functional\n" + method("return N.dropout(x, .1)"),
        method("return self.drop(x, .1)").replace("    def", "    drop = staticmethod(F.dropout)\n    def", 1),
        method("return {'d': F.dropout}['d'](x, .1)"),
        method("return F.dropout(x, .1)").replace("A(", "TestNet("),
        method("return F.dropout(x, .1, training=True)  # must not stay on in eval, fix"),
        method("return F.dropout(x, .1, training=True)  # always normalize first"),
    ],
)
def test_other_names_of_dropout(text):
    assert found(text) == ["PD101"]


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        ("if all([self.training, self.p > 0]):\n    x = F.dropout(x, .1)\nreturn x", []),
        ("return [F.dropout(y, .1) for y in x if self.training]", []),
        ("match self.training:\n    case True:\n        return F.dropout(x, .1)\nreturn x", []),
        ("match self.training:\n    case False:\n        return F.dropout(x, .1)\nreturn x", ["PD101"]),
        ("return F.dropout(x, .1, training=self.training or self.p > 0)", ["PD002"]),
        ("return F.dropout(x, .1, training=self.training or self.mc)", []),
    ],
)
def test_further_guards(body, codes):
    assert found(method(body)) == codes


@pytest.mark.parametrize(
    "init",
    [
        "self.ds = [nn.Dropout(p)] * 3",
        "self.ds = tuple(nn.Dropout(p) for _ in range(3))",
        "self.ds = dict(a=nn.Dropout(p))",
        "self.ds = {}\n        self.ds['a'] = nn.Dropout(p)",
    ],
)
def test_further_lists(init):
    assert found(method("return x", init)) == ["PD106"]


def test_a_rate_that_a_derived_class_sets():
    base = method("return F.scaled_dot_product_attention(x, x, x, dropout_p=self.p)", "self.p = 0.0")
    assert found(base) == []
    assert found(base + "class B(A):\n    p = 0.3\n") == ["PD102"]
    assert found(base + "class B(A):\n    def __init__(self):\n        self.p = 0.3\n") == ["PD102"]
    assert found(base + "class B(A):\n    q = 0.3\n") == []


@pytest.mark.parametrize(
    "text",
    [
        method("super().__init__()\nself.y = F.dropout(x, .1)", name="__init__"),
        method("return F.dropout(x, .1)").replace("    def", "    @staticmethod\n    def"),
    ],
)
def test_where_there_is_no_flag_to_ask_nothing_is_mended(text):
    assert fix_text(HEAD + text) == HEAD + text


def test_a_line_that_is_added_ends_like_the_others():
    text = (HEAD + method("return F.dropout(\n    x,\n    0.1,\n)")).replace("\n", "\r\n")
    assert fix_text(text) == text.replace("0.1,\r\n", "0.1,\r\n            training=self.training,\r\n")
