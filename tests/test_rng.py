import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles import VECTORS
from puredrop import Key, rng
from puredrop.rng import as_key_tensor, draw_key, fold_in, philox

anything = st.integers(-(2**70), 2**70)


@pytest.mark.parametrize("case", VECTORS["philox"], ids=lambda case: case["key"])
def test_philox_known_answers_in_both_arithmetics(case):
    key = int(case["key"])
    assert list(philox(key, tuple(case["counter"]))) == case["words"]
    words = philox(Key(key).tensor(), tuple(torch.tensor(word) for word in case["counter"]))
    assert [word.item() for word in words] == case["words"]


@pytest.mark.parametrize("case", VECTORS["fold_in"], ids=lambda case: repr(case["data"]))
def test_fold_in_known_answers(case):
    key = Key(int(case["key"]))
    if case["is_text"]:
        assert int(key.fold_in(case["data"])) == int(case["result"])
        return
    data = int(case["data"])
    assert int(key.fold_in(data)) == int(case["result"])
    assert fold_in(key.tensor(), data).item() % 2**64 == int(case["result"])


@pytest.mark.parametrize("case", VECTORS["pinned"], ids=lambda case: case["path"])
def test_pinned_chain_known_answers(case):
    key = Key(int(case["seed"])).fold_in(case["name"]).fold_in(case["path"])
    folded = key.fold_in(int(case["step"])).fold_in(case["call"])
    assert int(folded) == int(case["key"])


@pytest.mark.parametrize("case", VECTORS["normal_words"], ids=lambda case: case["index"])
def test_normal_words_known_answers(case):
    block = int(case["index"]) // 4
    assert list(philox(int(case["key"]), (block % 2**32, block // 2**32, 0, 2))) == case["words"]


@given(anything, anything)
def test_tensors_and_integers_fold_alike(seed, data):
    key = Key(seed)
    assert fold_in(key.tensor(), Key(data).tensor()).item() % 2**64 == int(key.fold_in(data))


def test_fold_in_broadcasts_and_stays_data():
    keys = torch.randint(-(2**63), 2**63 - 1, (3, 1))
    steps = torch.arange(5)
    folded = fold_in(keys, steps)
    assert folded.shape == (3, 5)
    assert folded[1, 4].item() % 2**64 == int(Key(keys[1, 0].item()).fold_in(4))
    assert folded.unique().numel() == 15
    torch.library.opcheck(torch.ops.puredrop.fold_in.default, (keys, steps))
    compiled = torch.compile(lambda key, step: fold_in(fold_in(key, step), 3), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(keys, steps), fold_in(fold_in(keys, steps), 3))


def test_fold_in_under_vmap_is_a_loop():
    keys, steps = torch.randint(-(2**63), 2**63 - 1, (4, 3)), torch.arange(3)
    for in_dims, a, b in [
        ((0, None), keys, steps),
        ((None, 0), keys[0], steps),
        ((1, 0), keys, steps),
        ((0, 0), steps, keys.T),
    ]:
        mapped = torch.func.vmap(fold_in, in_dims=in_dims)(a, b)
        slices = [
            [x if d is None else x.select(d, i) for x, d in zip((a, b), in_dims, strict=True)]
            for i in range(len(mapped))
        ]
        assert torch.equal(mapped, torch.stack([fold_in(*one) for one in slices]))


def test_fold_in_refuses_other_dtypes():
    with pytest.raises(TypeError, match=r"data has dtype torch.float32; expected torch.int64"):
        fold_in(Key(0).tensor(), torch.ones(2))
    with pytest.raises(TypeError, match=r"key has dtype torch.int32"):
        fold_in(torch.ones(2, dtype=torch.int32), 1)


@given(anything)
def test_a_key_is_its_seed_modulo_2_64(seed):
    key = Key(seed)
    assert int(key) == seed % 2**64
    assert key == Key(seed + 2**64)
    assert hash(key) == hash(Key(seed % 2**64))
    assert key.tensor().item() % 2**64 == int(key)
    assert eval(repr(key)) == key


def test_a_key_is_immutable_copyable_and_takes_numpy_integers():
    key = Key(np.int64(-1))
    assert int(key) == 2**64 - 1
    with pytest.raises(AttributeError):
        key.value = 3
    assert pickle.loads(pickle.dumps(key)) == copy.deepcopy(key) == key
    assert key.tensor().dtype == torch.int64
    assert key.tensor().shape == ()


@pytest.mark.parametrize("seed", [1.0, "a", None, torch.tensor(1.5)], ids=repr)
def test_a_seed_must_be_an_integer(seed):
    with pytest.raises(TypeError, match=r"seed is .*expected an integer"):
        Key(seed)


def test_fold_in_takes_integers_and_text_only():
    assert Key(1).fold_in("7") != Key(1).fold_in(7)
    with pytest.raises(TypeError, match=r"data is 1.5; expected an integer or a str"):
        Key(1).fold_in(1.5)


def test_drawn_keys_follow_torchs_generator_and_use_all_bits():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    keys = [draw_key(torch.device("cpu")).item() for _ in range(200)]
    torch.set_rng_state(state)
    assert [draw_key(torch.device("cpu")).item() for _ in range(200)] == keys
    ones = torch.tensor([[key >> bit & 1 for bit in range(64)] for key in keys]).float().mean(0)
    # 64 fractions of 200 fair bits: beyond 5 sigma (0.18) once in 27 000 seeds.
    assert ((ones - 0.5).abs() < 0.18).all()


def test_as_key_tensor_says_what_it_expects():
    cpu = torch.device("cpu")
    assert as_key_tensor(Key(5), cpu).item() == 5
    given_key = torch.tensor(9)
    assert as_key_tensor(given_key, cpu) is given_key
    with pytest.raises(TypeError, match=r"key is 7; expected puredrop.Key"):
        as_key_tensor(7, cpu)
    with pytest.raises(TypeError, match=r"dtype torch.float32 and shape \(\); expected a 0-d torch.int64"):
        as_key_tensor(torch.tensor(1.0), cpu)
    with pytest.raises(TypeError, match=r"shape \(2,\)"):
        as_key_tensor(torch.tensor([1, 2]), cpu)


def test_domains_are_those_of_the_contract():
    domains = (rng.DRAWS, rng.FOLD_IN, rng.NORMAL, rng.BALANCED)
    assert domains == (0, 1, 2, 3)  # the last word of the counter, so another number is other bits
