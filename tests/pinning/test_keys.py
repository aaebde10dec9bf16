"""Which key a site has: the chain of the contract, paths, copies, and models told apart."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nets import MLP, Mixed, Net, masks, same
from torch import nn
from torch.func import functional_call

import puredrop
from puredrop import Key

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "vectors.json").read_text())


def kept(key, shape, p):
    return puredrop.keep_mask(shape, p, key)


def expected(model, x, seed=0, name="", step=0):
    """The masks of a `Mixed`, from the contract alone."""
    base = Key(seed).fold_in(name)

    def key(path, call=0):
        return base.fold_in(path).fold_in(step).fold_in(call)

    samples, tokens, _width = x.shape
    return [
        kept(key("ours"), x.shape, 0.4),
        kept(key("attention"), (samples, 2, tokens, tokens), 0.2),
        kept(key("theirs"), x.shape, 0.3),
        kept(key(":dropout0"), x.shape, 0.5),
        kept(key("ours", 1), x.shape, 0.4),
    ]


@pytest.mark.parametrize("case", VECTORS["pinned"], ids=lambda case: case["path"])
def test_known_keys(case):
    """The site's key, as the operator is given it, is that of the vectors."""
    path = case["path"]
    module_path, colon, _ = path.partition(":")

    class Leaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = None if colon else puredrop.nn.Dropout(0.5)

        def forward(self, x):
            for _ in range(case["call"] + 1):
                x = F.dropout(x, 0.5) if colon else self.layer(x)
            return x

    leaf = Leaf()
    root = module = nn.Module()
    *parents, last = module_path.split(".")
    for part in parents:
        child = nn.Module()
        module.add_module(part, child)
        module = child
    module.add_module(last, leaf if colon else leaf.layer)
    root.forward = lambda x: leaf(x)
    run = puredrop.reproducible(root, seed=int(case["seed"]), name=case["name"])
    run.step = int(case["step"])
    found = masks(root, torch.ones(256))
    assert torch.equal(found[case["call"]], kept(Key(int(case["key"])), (256,), 0.5))


def test_every_kind_of_site_has_the_key_of_the_contract():
    model, x = Mixed(), torch.randn(6, 5, 16)
    run = puredrop.reproducible(model, seed=11, name="student")
    run.step = 2**33
    assert same(masks(model, x), expected(model, x, 11, "student", 2**33))
    run.advance()
    assert same(masks(model, x), expected(model, x, 11, "student", 2**33 + 1))


def test_paths_are_those_that_sites_lists():
    model, x = Net(), torch.randn(4, 5, 16)
    listed = {site.path: site.uses for site in puredrop.sites(model, x)}
    run = puredrop.reproducible(model)
    model(x)
    used = {site.layout.path: site.uses for site in run._forward.keys if site.uses}
    assert used == listed


def test_our_functions_without_a_key_are_sites_too():
    class Functions(nn.Module):
        def forward(self, x):
            y = puredrop.functional.dropout(x, 0.5)
            return puredrop.functional.relu_dropout(y + 1, 0.5), puredrop.functional.gaussian_dropout(x, 0.5)

    model, x = Functions(), torch.randn(8, 32)
    puredrop.reproducible(model, seed=4)
    after, noisy = model(x)
    base = Key(4).fold_in("")
    first = puredrop.functional.dropout(x, 0.5, key=base.fold_in(":dropout0").fold_in(0).fold_in(0))
    second = base.fold_in(":dropout1").fold_in(0).fold_in(0)
    assert torch.equal(after, puredrop.functional.relu_dropout(first + 1, 0.5, key=second))
    noise = base.fold_in(":gaussian_dropout0").fold_in(0).fold_in(0)
    assert torch.equal(noisy, puredrop.functional.gaussian_dropout(x, 0.5, key=noise))


def test_several_masks_of_one_use_fold_once_more():
    torch.manual_seed(0)
    lstm = puredrop.nn.LSTM(8, 8, num_layers=3, dropout=0.5, batch_first=True)
    locked = puredrop.nn.WeightDrop(nn.GRU(8, 8, num_layers=2, batch_first=True), 0.5)
    x = torch.randn(3, 4, 8)
    with puredrop.reproducible(nn.ModuleDict({"lstm": lstm, "locked": locked}), seed=1) as run, run.forward(3):
        dropped, weights = masks(lstm, x), masks(locked, x)
    base = Key(1).fold_in("")
    key = base.fold_in("lstm").fold_in(0).fold_in(0)
    assert same(dropped, [kept(key.fold_in(layer), (3, 4, 8), 0.5) for layer in (1, 2)])
    key = base.fold_in("locked").fold_in(0).fold_in(0)
    assert same(weights, [kept(key.fold_in(f"weight_hh_l{i}"), (24, 8), 0.5) for i in (0, 1)])


def wrapped(model, how):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    if how == "compile":
        return torch.compile(model, backend="eager")
    if how == "checkpoint":
        model.blocks[0] = checkpoint_wrapper(model.blocks[0])
    if how == "compiled block":
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    return model


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's own look
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["compile", "checkpoint", "compiled block"])
def test_wrappers_change_no_path(how, when):
    x = torch.randn(4, 5, 16)
    plain = Net()
    puredrop.reproducible(plain, seed=5)
    other = copy.deepcopy(plain)
    puredrop.reproducible(other).release()
    if when == "before":
        other = wrapped(other, how)
    run = puredrop.reproducible(other, seed=5)
    if when == "after":
        other = wrapped(other, how)
    torch.testing.assert_close(other(x), plain(x))  # another mask would differ by far more than rounding
    assert {site.layout.path for site in run._forward.keys} >= {"blocks.0.ours", "blocks.1:dropout0"}


@pytest.mark.filterwarnings("ignore")  # what torch says of FSDP 1 on a processor, and of its end
def test_fsdp_1_changes_no_path(tmp_path):
    dist = torch.distributed
    fsdp = pytest.importorskip("torch.distributed.fsdp").FullyShardedDataParallel
    plain, x = Net(), torch.randn(4, 5, 16)
    other = copy.deepcopy(plain)
    puredrop.reproducible(plain, seed=5)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for index in (0, 1):
            other.blocks[index] = fsdp(other.blocks[index], device_id=torch.device("cpu"))
        wrapped = fsdp(other, device_id=torch.device("cpu"))
        assert any("_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module" in path for path, _ in wrapped.named_modules())
        puredrop.reproducible(wrapped, seed=5)
        assert same(masks(wrapped, x), masks(plain, x))
    finally:
        dist.destroy_process_group()


def test_names_and_seeds_tell_models_apart():
    x = torch.randn(4, 5, 16)
    found = []
    for seed, name in ((0, ""), (0, "teacher"), (1, "")):
        model = Mixed()
        puredrop.reproducible(model, seed, name)
        found.append(masks(model, x))
    assert not same(found[0], found[1])
    assert not same(found[0], found[2])
    assert not same(found[1], found[2])


def test_a_copy_goes_on_by_itself():
    model, x = Mixed(), torch.randn(4, 5, 16)
    run = puredrop.reproducible(model, seed=3)
    run.step = 4
    twin = copy.deepcopy(model)
    assert same(masks(twin, x), expected(model, x, 3, step=4))
    run.advance()
    assert same(masks(model, x), expected(model, x, 3, step=5))
    puredrop.reproducible(twin, seed=3, name="ema")  # pins the copy anew, without a word about the original
    assert same(masks(twin, x), expected(model, x, 3, "ema", 0))
    run.step = 5
    assert same(masks(model, x), expected(model, x, 3, step=5))


def test_ema_copies_of_torch_and_pickles():
    model, x = Mixed(), torch.randn(4, 5, 16)
    puredrop.reproducible(model, seed=3)
    average = torch.optim.swa_utils.AveragedModel(model)
    assert same(masks(average.module, x), expected(model, x, 3))
    assert same(masks(pickle.loads(pickle.dumps(model)), x), expected(model, x, 3))


def test_a_part_copied_out_of_its_model_draws_its_keys():
    model, x = MLP(), torch.randn(4, 16)
    run = puredrop.reproducible(model)
    part = copy.deepcopy(copy.deepcopy(model.drop))
    assert part.key is None
    torch.manual_seed(0)
    one, two = part(x), part(x)
    torch.manual_seed(0)
    assert torch.equal(one, part(x))
    assert not torch.equal(one, two)
    run.release()


def test_a_block_copied_out_of_its_model_is_a_block_like_any_other():
    model, x = Net(), torch.randn(4, 5, 16)
    puredrop.reproducible(model)
    model(x)  # hooks are on
    block = copy.deepcopy(copy.deepcopy(model.blocks[0]))
    torch.manual_seed(0)
    one = block(x)
    assert not torch.equal(one, block(x))
    torch.manual_seed(0)
    assert torch.equal(one, block(x))
    puredrop.reproducible(block, seed=3)
    assert same(masks(block, x), expected(block, x, 3))


def test_functions_of_a_parametrized_module():
    class Own(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    model = nn.Sequential(nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(Own(8, 8)))
    x = torch.randn(4, 8)
    assert [site.path for site in puredrop.sites(model, x)] == ["1:dropout0"]
    puredrop.reproducible(model)
    key = Key(0).fold_in("").fold_in("1:dropout0").fold_in(0).fold_in(0)
    assert same(masks(model, x), [kept(key, (4, 8), 0.5)])


def test_functional_call_and_vmap_of_it():
    model, x = MLP(), torch.randn(5, 16)
    run = puredrop.reproducible(model, seed=2)
    outside = model(x)
    run.step = 0
    parameters = dict(model.named_parameters())
    assert torch.equal(functional_call(model, parameters, (x,)), outside)
    run.step = 0
    stacked = {name: value.detach().expand(3, *value.shape) for name, value in parameters.items()}
    mapped = torch.func.vmap(lambda one: functional_call(model, one, (x,)))(stacked)
    torch.testing.assert_close(mapped, outside.detach().expand(3, -1, -1))


def test_nested_models_have_each_its_own():
    inner, x = MLP(), torch.randn(4, 16)
    outer = nn.Sequential(inner, puredrop.nn.Dropout(0.5))
    puredrop.reproducible(inner, seed=1)
    puredrop.reproducible(outer, seed=2)
    found = masks(outer, x)
    base = Key(1).fold_in("")
    assert torch.equal(found[0], kept(base.fold_in("drop").fold_in(0).fold_in(0), (4, 32), 0.5))
    assert torch.equal(found[2], kept(Key(2).fold_in("").fold_in("1").fold_in(0).fold_in(0), (4, 16), 0.5))


def test_a_layer_in_two_models_follows_the_one_that_runs():
    shared = puredrop.nn.Dropout(0.5)
    a, b = nn.Sequential(shared), nn.ModuleDict({"x": shared})
    b.forward = shared.__call__
    run = puredrop.reproducible(a, seed=1)
    puredrop.reproducible(b, seed=2)
    x = torch.randn(4, 64)
    assert same(masks(a, x), [kept(Key(1).fold_in("").fold_in("0").fold_in(0).fold_in(0), (4, 64), 0.5)])
    assert same(masks(b, x), [kept(Key(2).fold_in("").fold_in("x").fold_in(0).fold_in(0), (4, 64), 0.5)])
    run.release()
    assert same(masks(b, x[:0]), []) is False
    assert "pinned('x')" in repr(shared)


def test_a_layer_keeps_a_key_of_its_own():
    model = nn.Sequential(puredrop.nn.Dropout(0.5, key=Key(9)), puredrop.nn.Dropout(0.5))
    run = puredrop.reproducible(model)
    x = torch.randn(4, 64)
    first, second = masks(model, x)
    run.advance()
    again, later = masks(model, x)
    assert torch.equal(first, again)
    assert torch.equal(first, kept(Key(9), (4, 64), 0.5))
    assert not torch.equal(second, later)


def test_release_leaves_nothing():
    model, x = Net(), torch.randn(4, 5, 16)
    before = repr(model)
    with puredrop.reproducible(model) as run:
        model(x)
        assert "key=pinned('blocks.0.ours')" in repr(model)
        assert run.seed == 0
    assert repr(model) == before
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    torch.manual_seed(0)
    one = model(x)
    assert not torch.equal(one, model(x))
    torch.manual_seed(0)
    assert torch.equal(one, model(x))
