"""The oracles can say no: each of them is seen to fail."""

import torch

from oracles import VECTORS, keeps, logical, philox, same_bits


def test_the_oracle_passes_the_known_answers_and_differs_from_a_wrong_round_count():
    for case in VECTORS["philox"]:
        assert philox(int(case["key"]), tuple(case["counter"])) == case["words"]
    for case in VECTORS["keep"]:
        if "keep" in case:
            start = int(case["start"])
            mine = "".join("01"[keeps(int(case["key"]), start + i, case["p"])] for i in range(48))
            assert mine == case["keep"][:48]
    for case in VECTORS["index"]:
        window = None
        if case["window_shape"]:
            window = (tuple(case["window_shape"]), tuple(case["window_offset"] or [0] * len(case["shape"])))
        ids = case["sample_ids"] and [int(i) for i in case["sample_ids"]]
        arguments = (tuple(case["shape"]), tuple(case["shared_dims"]), window, ids, case["sample_dim"])
        assert logical(*arguments) == [int(j) for j in case["logical"]]


def test_same_bits_tells_zero_from_minus_zero_and_knows_nan():
    zero = torch.zeros(3)
    assert not same_bits(zero, -zero)
    assert same_bits(zero / 0, zero / 0)
    assert not same_bits(zero, zero.double())
