"""The values that can reach a call: right code is left alone, wrong code is named, and what is not followed is said."""

import pytest
from sources import HEAD, found, method

from puredrop.linting.source import check_text

SDPA = "F.scaled_dot_product_attention(q, k, v, {})"


def attention(argument, before="pass", init=""):
    return method(f"{before}\nreturn {SDPA.format(argument)}", init, arguments="self, q, k, v")


# Attention: the rate alone switches it off.

ON = ["dropout_p=.1", "dropout_p=self.p", "dropout_p=self.drop.p", "dropout_p=self.cfg.attn.rate", "None, self.rate",
      "dropout_p=cfg['dropout']", "dropout_p=self.rates[i]", "dropout_p=1 - self.keep", "dropout_p=self.p * 2",
      "dropout_p=float(self.p)", "dropout_p=self.p if self.deep else 0.0", "dropout_p=getattr(self, 'p')"]  # fmt: skip
OFF = ["dropout_p=0.0", "dropout_p=self.p if self.training else 0.0", "dropout_p=0. if not self.training else self.p",
       "dropout_p=self.p * self.training", "dropout_p=int(self.training) * self.p", "dropout_p=self.training and self.p",
       "dropout_p=self.p if self.training and self.p > 0 else 0", "dropout_p=(0.0, self.p)[1] * float(self.training)",
       "dropout_p=self.p if self.training is True else 0.", "dropout_p=self.p if self.drop.training else 0.", ""]  # fmt: skip


@pytest.mark.parametrize("argument", ON)
def test_attention_that_stays_on(argument):
    assert found(attention(argument)) == ["PD102"]


@pytest.mark.parametrize("argument", OFF)
def test_attention_that_eval_mode_switches_off(argument):
    assert found(attention(argument)) == []


@pytest.mark.parametrize(
    ("before", "codes"),
    [
        ("p = self.p if self.training else 0.", []),
        ("p = self.p\nif not self.training:\n    p = 0.0", []),
        ("if self.training:\n    p = self.p\nelse:\n    p = 0", []),
        ("p = 0.\nif self.training:\n    p = self.p", []),
        ("p = self.p\np *= self.training", []),
        ("p = self.p", ["PD102"]),
        ("p = self.p\nif self.deep:\n    p = 0.0", ["PD102"]),
        ("p = 0.0\nfor i in range(3):\n    p = self.p", ["PD102"]),
        ("p = self.p if self.is_training else 0.", ["PD002"]),
        ("p = self.schedule(step)", ["PD002"]),
        ("try:\n    p = 0.0\nexcept ValueError:\n    p = self.p", ["PD102"]),
        ("with torch.no_grad():\n    p = 0.0", []),
    ],
)
def test_a_rate_in_a_variable(before, codes):
    assert found(attention("dropout_p=p", before)) == codes


@pytest.mark.parametrize(
    ("init", "codes"),
    [
        ("self.p = 0.0", []),
        ("self.p = p", ["PD102"]),
        ("self.p = p if self.training else 0.0", ["PD102"]),  # a module is born in training mode
        ("self.p = 0.0\n    def train(self, mode=True):\n        self.p = 0.1 if mode else 0.0", []),
        ("self.p = 0.1\n    def eval(self):\n        self.p = 0.0", []),
        ("self._p = p\n    @property\n    def p(self):\n        return self._p if self.training else 0.0", []),
        ("self._p = p\n    @property\n    def p(self):\n        return self._p", ["PD102"]),
    ],
)
def test_a_rate_that_the_class_sets(init, codes):
    assert found(attention("dropout_p=self.p", init=init)) == codes


@pytest.mark.parametrize(
    ("imports", "call"),
    [
        ("from flash_attn import flash_attn_func", "flash_attn_func(q, k, v, {})"),
        ("from flash_attn.flash_attn_interface import flash_attn_func as f", "f(q, k, v, dropout_p={})"),
        ("import xformers.ops as xops", "xops.memory_efficient_attention(q, k, v, None, {})"),
        (
            "from torch.nn.functional import scaled_dot_product_attention",
            "scaled_dot_product_attention(q, k, v, None, {})",
        ),
        ("from torch import nn as n", "n.functional.scaled_dot_product_attention(q, k, v, dropout_p={})"),
    ],
)
def test_attention_under_other_names(imports, call):
    for rate, codes in (("self.p", ["PD102"]), ("self.p if self.training else 0.", [])):
        assert found(imports + "\n" + method("return " + call.format(rate), arguments="self, q, k, v")) == codes


# Guards.

GUARDED = [
    "if self.training:\n    x = F.dropout(x, .1)\nreturn x",
    "if self.p > 0 and self.training:\n    x = F.dropout(x, self.p)\nreturn x",
    "if not self.training or self.p == 0:\n    return x\nreturn F.dropout(x, self.p)",
    "if self.training == False:\n    return x\nreturn F.dropout(x, .1)",
    "return F.dropout(x, .1) if self.training else x",
    "return self.training and F.dropout(x, .1) or x",
    "while self.training:\n    x = F.dropout(x, .1)\nreturn x",
    "assert self.training\nreturn F.dropout(x, .1)",
    "if not self.training:\n    raise ValueError\nreturn F.dropout(x, .1)",
    "for w in (1, 2):\n    if not self.training:\n        continue\n    x = F.dropout(x, .1)\nreturn x",
    "if self.training:\n    def drop(y):\n        return F.dropout(y, .1, True)\n    x = drop(x)\nreturn x",
    "on = self.training\nif on:\n    x = F.dropout(x, .1)\nreturn x",
    "if self.training or self.always:\n    x = F.dropout(x, .1, True)\nreturn x",
    "if not (self.training or self.always):\n    return x\nreturn F.dropout(x, .1)",
    "match self.training:\n    case True:\n        return F.dropout(x, .1, self.training)\nreturn x",
    "return F.dropout(x, .1, training=self.training or self.mc)",
    "return F.dropout(x, .1, bool(self.training))",
    "return F.dropout(x, .1 if self.training else 0.)",
]
UNGUARDED = [
    "if self.deep:\n    x = F.dropout(x, .1)\nreturn x",
    "if self.training:\n    x = x + 1\nreturn F.dropout(x, .1)",
    "if self.training:\n    return x\nreturn F.dropout(x, .1)",
    "return F.dropout(x, .1, training=not self.training)",
    "if len(x) > 3:\n    return x\nreturn F.dropout(x, .1)",
    "return F.dropout(x, .1, training=self.train)",
    "return F.dropout(x, .1, training=True)",
    "return F.dropout2d(x, .1, True)",
    "return torch.dropout(x, .1, True)",
    "return F.dropout(x, .1, self.p)",
    "return F.dropout(x, self.p, 0.5)",
    "return F.dropout(x)",
    "return getattr(F, 'dropout')(x, .1)",
    "drop = F.dropout\nreturn drop(x, .1)",
    "return (lambda y: F.dropout(y, .1))(x)",
    "return [F.dropout(y, .1) for y in x]",
    "return x + (y := F.dropout(x, .1))",
]


@pytest.mark.parametrize("body", GUARDED)
def test_guarded_calls(body):
    assert found(method(body)) == []


@pytest.mark.parametrize("body", UNGUARDED)
def test_calls_without_a_guard(body):
    assert found(method(body)) == ["PD101"]


# Flags that callers hand on.


@pytest.mark.parametrize(
    "text",
    [
        method("if training: x = F.dropout(x, .1)\nreturn x", arguments="self, x, training=False"),
        method("return F.dropout(x, .1, train)", arguments="self, x, train"),
        method("if deterministic:\n    return x\nreturn F.dropout(x, .1)", arguments="self, x, deterministic=True"),
        method("return F.dropout(x, .1, not is_eval)", arguments="self, x, is_eval"),
        method("if mode == 'train':\n    x = F.dropout(x, .1)\nreturn x", arguments="self, x, mode"),
        method("if use_dropout:\n    x = F.dropout(x, .1)\nreturn x", arguments="self, x, use_dropout"),
        "def attend(w, rate, training=True):\n    if not training:\n        rate = 0.0\n    return F.dropout(w, p=rate)\n",
        "def attend(w, rate, flag):\n    return F.dropout(w, rate, flag)\n",
        "def attend(q, dropout_p=0.0):\n    return F.scaled_dot_product_attention(q, q, q, dropout_p=dropout_p)\n",
        "def attend(*args, **kwargs):\n    return F.scaled_dot_product_attention(*args, **kwargs)\n",
    ],
)
def test_a_flag_of_the_caller(text):
    assert found(text) == []


WRAPPER = "def mask(x, p=.5, training=True):\n    return F.dropout(x, p, training)\n"


@pytest.mark.parametrize(
    ("call", "lines"),
    [
        ("mask(x, .1, self.training)", []),
        ("mask(x, .1, training=self.training)", []),
        ("mask(x, 0.0)", []),
        ("mask(x, .1)", [9]),
        ("mask(x, .1, True)", [9]),
        ("mask(x, .1, training=self.train)", [9]),
        ("functools.partial(mask, p=.1)(x)", [9]),
        ("functools.partial(mask, training=self.training)(x)", []),
        ("self.twice(x)", []),
    ],
)
def test_the_caller_is_named_where_the_caller_is_wrong(call, lines):
    text = "import functools\n" + WRAPPER + method(f"return {call}")
    assert [finding.line for finding in check_text(HEAD + text)] == lines


def test_two_steps_of_wrappers():
    outer = "def twice(x, training):\n    return mask(mask(x, .1, training), .1, training)\n"
    assert found(WRAPPER + outer + method("return twice(x, self.training)")) == []
    (finding,) = check_text(HEAD + WRAPPER + outer + method("return twice(x, True)"))
    assert finding.line == 10


def test_a_submodule_whose_forward_takes_the_flag():
    inner = method("return F.dropout(x, .1, training)", arguments="self, x, training=True").replace("A(", "Inner(")
    outer = method("return self.inner(x{})", "self.inner = Inner()")
    assert found(inner + outer.format(", self.training")) == []
    assert found(inner + outer.format("")) == ["PD101"]


def test_a_wrapper_without_a_flag_is_wrong_itself_unless_a_caller_switches_the_rate():
    wrapper = "def mask(x, rate):\n    return F.dropout(x, rate)\n"
    assert found(wrapper) == ["PD002"]
    (finding,) = check_text(HEAD + wrapper + method("return mask(x, self.p)"))
    assert (finding.code, finding.line) == ("PD101", 5)
    right = method("return mask(x, self.p if self.training else 0.)").replace("A(", "B(")
    (finding,) = check_text(HEAD + wrapper + right + method("return mask(x, self.p)"))
    assert (finding.code, finding.line) == ("PD101", 11)


# What is not followed is said.


@pytest.mark.parametrize(
    "flag",
    ["options[name]", "self.is_training", "ask()", "cfg.training", "torch.is_grad_enabled()", "kwargs.get('train')"],
)
def test_what_is_not_followed(flag):
    (finding,) = check_text(HEAD + method(f"kwargs = ask()\nreturn F.dropout(x, .1, training={flag})"))
    assert (finding.code, finding.severity) == ("PD002", "unknown")
    assert finding.detail.startswith("training=")


def test_a_condition_that_is_not_followed():
    assert found(method("if self.is_training:\n    x = F.dropout(x, .1)\nreturn x")) == ["PD002"]
    assert found(method("if self.is_training:\n    x = F.dropout(x, .1, self.training)\nreturn x")) == []


# Layers.

MADE = [
    method("return nn.Dropout(self.p)(x)", name="_mix"),
    method("return nn.Dropout2d(.1)(x)", name="__call__"),
    method("drop = nn.Dropout(.1)\nreturn drop(x)"),
    method("return nn.Sequential(nn.ReLU(), nn.Dropout(.1))(x)"),
    "def mix(x, rate):\n    return nn.Dropout(rate)(x)\n",
    "def attend(q, k, rate=.1):\n    drop = nn.Dropout(rate)\n    return drop(q @ k.mT)\n",
]
HELD = [
    method("self.drop = nn.Dropout(.1)", name="_build", arguments="self"),
    method("return nn.Dropout(.1).train(self.training)(x)"),
    method("return nn.Dropout(.1 if self.training else 0.)(x)"),
    method("if self.training:\n    x = nn.Dropout(.1)(x)\nreturn x"),
    "def block(p):\n    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(p))\n",
    "def layers(p):\n    out = [nn.Linear(2, 2)]\n    drop = nn.Dropout(p)\n    out.append(drop)\n    return out\n",
    "def main():\n    drop = nn.Dropout(.5)\n    print(drop(torch.ones(3)))\n",
    "def fit(data):\n    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(.5))\n    return model(data)\n",
    "drop = nn.Dropout(.5)\nprint(drop(torch.ones(3)), F.dropout(torch.ones(3)))\n",
    "def test_it(x):\n    assert F.dropout(x).sum() and nn.Dropout()(x).sum()\n",
]


@pytest.mark.parametrize("text", MADE)
def test_layers_made_where_they_are_called(text):
    assert found(text) == ["PD105"]


@pytest.mark.parametrize("text", HELD)
def test_layers_that_are_held_and_scripts(text):
    assert found(text) == []


@pytest.mark.parametrize(
    ("init", "codes"),
    [
        ("self.drops = [nn.Dropout(p) for _ in range(3)]", ["PD106"]),
        ("self.drops = {'a': nn.Dropout(p)}", ["PD106"]),
        ("self.drops = []\n        self.drops.append(nn.Dropout(p))", ["PD106"]),
        ("self.drops = [nn.ReLU()]\n        self.drops += [nn.Sequential(nn.Dropout(p))]", ["PD106"]),
        ("self.drops = (nn.Dropout(p), nn.ReLU())", ["PD106"]),
        ("self.drops = nn.ModuleList([nn.Dropout(p)])", []),
        ("self.drops = [nn.Dropout(p)]\n        self.net = nn.Sequential(*self.drops)", []),
        ("self.drops = [nn.Dropout(p)]\n        self.drops = nn.ModuleList(self.drops)", []),
        ("drops = [nn.Dropout(p)]\n        self.net = nn.Sequential(*drops)", []),
        ("self.drops = [nn.Dropout(p)]\n        for i, d in enumerate(self.drops): self.add_module(str(i), d)", []),
        ("self.acts = [nn.ReLU()]", []),
        (
            "self.ms = nn.ModuleList()\n        d = nn.Dropout(p)\n        self.ds = {}\n        self.ds['a'] = d\n        self.ms.append(d)",
            [],
        ),
    ],
)
def test_layers_in_plain_lists(init, codes):
    assert found(method("return x", init)) == codes


# Rates and results.


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        ("return F.dropout(x, self.training)", ["PD304"]),
        ("return F.dropout(x, p=self.training, training=True)", ["PD304"]),
        ("return F.dropout(x, True)", ["PD304"]),
        ("return F.dropout(x, p=self.keep_prob, training=self.training)", ["PD305"]),
        ("keep_prob = self.k\nreturn F.dropout(x, keep_prob, self.training)", ["PD305"]),
        ("return F.dropout(x, 1 - self.keep_prob, self.training)", []),
        ("return F.alpha_dropout(x, .2)", ["PD202"]),
        ("return F.dropout(x, .2, training=False)", ["PD202"]),
        ("return nn.Dropout(.1).eval()(x)", ["PD202"]),
        ("if self.training:\n    return x\nreturn F.dropout(x, .2, training=False)", []),
        ("F.dropout(x, .1, self.training)\nreturn x", ["PD203"]),
        ("self.dropout(x)\nreturn x", ["PD203"]),
        ("F.dropout(x, .1, self.training, inplace=True)\nreturn x", []),
        ("F.dropout(x, .1, self.training, True)\nreturn x", []),
        ("self.log(x)\nreturn x", []),
        ("if not self.training:\n    self.rate = 0.0\nreturn F.dropout(x, self.rate, self.training)", ["PD204"]),
        ("self.rate = self.p if self.training else 0.\nreturn F.dropout(x, self.rate, self.training)", []),
    ],
)
def test_rates_and_results(body, codes):
    assert found(method(body)) == codes


@pytest.mark.parametrize(
    ("layer", "codes"),
    [
        ("nn.Dropout(.1)", ["PD203"]),
        ("nn.Dropout(.1, inplace=True)", []),
        ("nn.Dropout(keep_prob)", ["PD305", "PD203"]),
    ],
)
def test_a_held_layer_whose_result_is_thrown_away(layer, codes):
    assert found(method("self.drop(x)\nreturn x", f"keep_prob = p\n        self.drop = {layer}")) == codes


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        (method("# dropout stays on at inference, too\nreturn F.dropout(x, .5, training=True)"), []),
        (method("return F.dropout(x, .5, training=True)").replace("A(", "MCDropout("), []),
        (method("return F.dropout(self.fc(x), .5)").replace("A(", "Prenet("), []),
        (method("return F.dropout(x, .5, training=True)  # faster"), ["PD101"]),
    ],
)
def test_dropout_that_is_meant_to_stay_on(text, codes):
    assert found(text) == codes


# Recomputation and keys.

FUNCTION = """class Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, x):
        ctx.run = run{}
        with torch.no_grad():
            return ctx.run(x)
    @staticmethod
    def backward(ctx, g):
        with torch.enable_grad():
            y = ctx.run(ctx.saved_tensors[0])
        return None, g
"""
DROPS = method("return self.d(x)", "self.d = nn.Dropout(p)")
CHECKPOINT = "from torch.utils.checkpoint import checkpoint\n" + DROPS + method("return checkpoint(self.f, x, {})")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        (FUNCTION.format("") + DROPS, ["PD406"]),
        (FUNCTION.format("; ctx.rng_state = torch.get_rng_state()") + DROPS, []),
        (FUNCTION.format(""), []),  # nothing here drops
        (CHECKPOINT.format("preserve_rng_state=False"), ["PD406"]),
        (CHECKPOINT.format("preserve_rng_state=True"), []),
        (CHECKPOINT.format("use_reentrant=False"), []),
    ],
)
def test_recomputation(text, codes):
    assert found(text) == codes


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("key = Key(0)\ny = P.dropout(torch.ones(3), .5, key=key)\n", []),
        ("def mask(x, key):\n    return P.dropout(x, .5, key=key)\n", []),
        (method("return P.dropout(x, .5, self.training, key=Key(0))"), ["PD407"]),
        (method("return P.dropout(x, .5, self.training, key=Key(0).fold_in(step))", arguments="self, x, step"), []),
        (method("return P.dropout(x, .5, key=key)", arguments="self, x, key"), ["PD101"]),
        (method("return P.dropout(x, .5, self.training)"), []),
        ("key = Key(0)\nfor x in data:\n    P.dropout(net(x), key=key).sum().backward()\n", ["PD407"]),
        ("for i, x in enumerate(data):\n    P.dropout(net(x), key=Key(0).fold_in(i)).sum().backward()\n", []),
        ("key = Key(0)\nfor p in rates:\n    print(P.dropout(x, p, key=key))\n", []),
    ],
)
def test_functions_of_this_library(text, codes):
    assert found("import puredrop.functional as P\nfrom puredrop import Key\n" + text) == codes
