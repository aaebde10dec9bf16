"""Where samples lie is shown on other numbers of samples, and what lies elsewhere is refused."""

import random

import pytest
import torch
import torch.nn.functional as F
from nets import Net, masks, same
from torch import nn

import puredrop

SAMPLES, TIME, WIDTH = 6, 10, 8


class Site(nn.Module):
    """A site on a tensor that a function makes of the input."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        self.drop = puredrop.nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.randn(TIME, WIDTH))

    def forward(self, x):
        return self.drop(self.change(self, x))


def heads(x):
    return x.view(len(x), TIME, 4, -1).transpose(1, 2)


HOLD = {  # the samples come first
    "same": lambda s, x: x,
    "flattened": lambda s, x: x.reshape(-1, WIDTH),
    "heads": lambda s, x: heads(x).reshape(4 * len(x), TIME, -1),
    "attention": lambda s, x: torch.bmm(h := heads(x).reshape(4 * len(x), TIME, -1), h.transpose(1, 2)).softmax(-1),
    "bmm heads": lambda s, x: x.transpose(0, 1).reshape(TIME, 4 * len(x), -1).transpose(0, 1),
    "windows": lambda s, x: x.view(len(x), 2, 5, WIDTH).flatten(0, 1),
    "repeated": lambda s, x: x.repeat_interleave(3, 0),
    "pooled": lambda s, x: F.avg_pool1d(x.transpose(1, 2), 2),
    "pairs": lambda s, x: torch.cat([x, x]).chunk(2)[1],
    "there and back": lambda s, x: torch.tanh(x.transpose(0, 1)).transpose(0, 1),
    "einsum": lambda s, x: torch.einsum("ntd,nsd->nts", x, x),
    "split heads": lambda s, x: heads(x).reshape(-1, 4, TIME, WIDTH // 4),
}
WRONG = {  # sample dimension that is right, None for no sample; "-" where none is
    "time first": (lambda s, x: x.transpose(0, 1), 1),
    "time first, attended": (lambda s, x: torch.tanh(x.permute(1, 0, 2) @ s.weight[:8]), 1),
    "positions": (lambda s, x: s.weight, None),
    "one position": (lambda s, x: s.weight[None], None),
    "heads first": (lambda s, x: torch.stack([x] * 4), 1),
    "heads joined": (lambda s, x: torch.cat(x.split(2, dim=2)), "-"),
    "heads moved": (lambda s, x: heads(x).transpose(0, 1).reshape(4 * len(x), TIME, -1), "-"),
    "tokens by time": (lambda s, x: x.transpose(0, 1).reshape(-1, WIDTH), "-"),
    "repeated as a whole": (lambda s, x: x.repeat(3, 1, 1), "-"),
    "a row more": (lambda s, x: torch.cat([s.weight[None], x]), "-"),
    "among samples": (lambda s, x: x.flatten(1) @ x.flatten(1).T, "-"),
    "sample by sample": (lambda s, x: torch.stack([s.drop(row * 1) for row in x]), "loop"),
    "channels first": (lambda s, x: x.permute(2, 0, 1), 1),
}
INPUTS = torch.randn(SAMPLES, TIME, WIDTH, generator=torch.Generator().manual_seed(5))


def pinned(change, **options):
    model = Site(change)
    return model, puredrop.reproducible(model, seed=4, **options)


@pytest.mark.parametrize("name", HOLD)
@pytest.mark.parametrize("samples", [1, SAMPLES])
def test_samples_that_come_first_are_shown_to(name, samples):
    model, run = pinned(HOLD[name], strict=True)
    model(INPUTS[:samples])
    (site,) = run.report.sites
    assert site.samples == "shown"
    run.step = 0
    whole = model(INPUTS)
    for cut in (1, 4):
        run.step = 0
        parts = [model(INPUTS[:cut]), model(INPUTS[cut:])]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("first", [1, 4, 5])
@pytest.mark.parametrize("examined", [1, SAMPLES])
def test_samples_elsewhere_are_refused(name, first, examined):
    model, run = pinned(WRONG[name][0])
    model(INPUTS[:examined])
    assert [site.samples for site in run.report.sites] == ["refused"]
    run.step = 0
    model(INPUTS[:first])
    with pytest.raises(ValueError, match=r"site 'drop' drops from .*sample_dims"):
        model(INPUTS[first:])
    run.step = 0
    run.sample_ids = torch.arange(SAMPLES)
    with pytest.raises(ValueError, match=r"site 'drop' drops from .*sample_dims"):
        model(INPUTS)


@pytest.mark.parametrize("name", WRONG)
def test_a_first_forward_that_is_no_whole_step_is_refused_too(name):
    model, run = pinned(WRONG[name][0])
    run.sample_ids = torch.arange(SAMPLES)
    with pytest.raises(ValueError, match="sample_dims"):
        model(INPUTS)


@pytest.mark.parametrize("name", WRONG)
def test_strict_refuses_samples_elsewhere_at_once(name):
    model, _ = pinned(WRONG[name][0], strict=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"strict=True\): site 'drop': .*sample_dims="):
            model(INPUTS)


@pytest.mark.parametrize("name", [name for name, (_, dim) in WRONG.items() if dim not in ("-", "loop")])
def test_with_sample_dims_masks_are_those_of_the_whole_batch(name):
    change, dim = WRONG[name]
    model, run = pinned(change, sample_dims={"drop": dim}, strict=True)
    run.batch_size = SAMPLES
    (whole,) = masks(model, INPUTS)
    for cut in (1, 4, 5):
        run.step = 0
        parts = [masks(model, INPUTS[:cut])[0], masks(model, INPUTS[cut:])[0]]
        if dim is None:
            assert torch.equal(parts[0], whole)
            assert torch.equal(parts[1], whole)
        else:
            assert torch.equal(torch.cat(parts, dim), whole)


def test_a_dimension_that_is_given_wrongly_is_refused():
    for change, dim in ((WRONG["time first"][0], None), (HOLD["same"], 1), (WRONG["positions"][0], 1)):
        model, _ = pinned(change, sample_dims={"drop": dim})
        model(INPUTS)
        with pytest.raises(ValueError, match="sample_dims"):
            model(INPUTS)


def test_rows_that_are_no_samples_may_be_dropped_by_position():
    model, run = pinned(WRONG["a row more"][0], sample_dims={"drop": None}, strict=True)
    model(INPUTS)
    model(INPUTS)
    assert [site.samples for site in run.report.sites] == ["given"]


def test_data_decides_the_forward():
    """Fake tensors have no data, so that a copy runs on rows of the batch; nothing of the model changes."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(WIDTH)
            self.drop, self.first = nn.Dropout(0.5), puredrop.nn.Dropout(0.5)
            self.calls, self.list = 0, []
            self.weight = nn.Parameter(torch.randn(TIME, WIDTH))

        def forward(self, x):
            self.calls += 1
            self.list.append(x.sum().item())
            x = self.norm(x.flatten(0, 1)).view_as(x)
            if x.sum().item() < 1e6:
                return self.drop(x.transpose(0, 1)).sum() + self.first(x).sum()
            return x

    for samples in (1, SAMPLES):
        model = Branch()
        run = puredrop.reproducible(model)
        model(INPUTS[:samples])
        assert {site.path: site.samples for site in run.report.sites} == {"drop": "refused", "first": "shown"}
        assert model.calls == len(model.list) == 1
        assert model.norm.num_batches_tracked == 1
        mean = INPUTS[:samples].flatten(0, 1).mean(0)
        torch.testing.assert_close(model.norm.running_mean, 0.1 * mean)
        with pytest.raises(ValueError, match=r"dimension 1 holds the samples: .*sample_dims=\{'drop': 1\}"):
            model(INPUTS)


def test_a_trial_leaves_no_trace():
    log = []

    class Traced(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.seen = nn.Dropout(0.5), {}

        def forward(self, x):
            log.append(x)
            self.seen["x"] = x
            return self.drop(x * 1)

    model = Traced()
    hooked = []
    model.drop.register_forward_hook(lambda *arguments: hooked.append(arguments[-1]))
    puredrop.reproducible(model)
    model(INPUTS)
    assert [type(x) for x in (*log, *hooked, *model.seen.values())] == [torch.Tensor] * 3


def test_a_model_that_runs_on_one_batch_alone_keeps_working():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            assert len(x) == SAMPLES, "another batch"
            return self.drop(x * 1)

    model = Once()
    run = puredrop.reproducible(model)
    first = masks(model, INPUTS)
    (site,) = run.report.sites
    assert site.samples == "assumed"
    assert "another batch" in site.reason
    run.step = 0
    assert same(masks(model, INPUTS), first)
    model = Once()
    puredrop.reproducible(model, strict=True)
    with pytest.raises(ValueError, match=r"site 'drop': .*assumed.*sample_dims=\{'drop': 0\}"):
        model(INPUTS)
    model = Once()
    puredrop.reproducible(model, strict=True, sample_dims={"drop": 0})
    model(INPUTS)


def transformer(batch_first):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.3, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize("convert", [False, True])
def test_transformers_and_recurrent_networks(convert):
    cases = [
        (transformer(True), None, "shown"),
        (transformer(False), 1, "shown"),
        (transformer(False), None, "assumed"),
        (nn.LSTM(WIDTH, 8, 2, dropout=0.3, batch_first=True), None, "shown"),
        (nn.GRU(WIDTH, 8, 2, dropout=0.3), 1, "shown"),
    ]
    for model, dim, status in cases:
        model = puredrop.convert(model) if convert else model
        run = puredrop.reproducible(model, sample_dim=dim)
        model(INPUTS)
        assert {site.samples for site in run.report.sites} == {status}, type(model)


def test_a_mask_over_time_may_have_as_many_indices_as_there_are_samples():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)

        def forward(self, x, mask):
            return self.attention(x, x, x, attn_mask=mask)[0]

    for samples in (1, SAMPLES, TIME):
        model, mask = Masked(), torch.zeros(TIME, TIME)
        puredrop.reproducible(model, strict=True)
        model(torch.randn(samples, TIME, WIDTH), mask)


def test_uses_that_chance_decides_are_no_uses_of_samples():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = puredrop.nn.Dropout(0.5)

        def forward(self, x):
            for _ in range(20):
                x = x if random.random() < 0.5 else self.drop(x)
                x = x if random.random() < 0.5 else self.drop(x.flatten(1)).view_as(x)
            return x

    for _ in range(5):
        model = Skips()
        run = puredrop.reproducible(model)
        with pytest.warns(puredrop.UnpinnedWarning):
            model(INPUTS)
        assert {site.samples for site in run.report.sites} == {"shown"}


def test_packed_sequences_are_refused_by_name_when_split():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(WIDTH, 4, 2, dropout=0.5, batch_first=True)

        def forward(self, x, lengths):
            return self.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[0].data

    model = Packed()
    run = puredrop.reproducible(model)
    model(INPUTS, [TIME] * SAMPLES)
    assert {site.samples for site in run.report.sites} <= {"refused", "assumed"}
    with pytest.raises(ValueError, match="packed sequence"):
        model(INPUTS, [TIME] * SAMPLES)


def test_ragged_rows_are_no_samples():
    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x[x[..., 0] > 0])

    model = Ragged()
    run = puredrop.reproducible(model)
    model(INPUTS)
    assert [site.samples for site in run.report.sites] == ["refused"]
    with pytest.raises(ValueError, match="do not follow the number of samples"):
        model(INPUTS)


def test_convolutions_and_embeddings():
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.2), nn.Flatten(), nn.Dropout(0.5))

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.positions = nn.Embedding(50, WIDTH), nn.Embedding(TIME, WIDTH)
            self.drop, self.first = nn.Dropout(0.5), puredrop.nn.WordDropout(0, 0.3)
            self.layer = puredrop.nn.LayerDrop(puredrop.nn.drop_connect(nn.Linear(WIDTH, WIDTH), 0.2), 0.5)

        def forward(self, ids, mask=None):
            ids = self.first(ids)
            h = self.drop(self.words(ids) + self.positions(torch.arange(ids.shape[1])))
            return self.layer(h if mask is None else h * mask[..., None])

    ids = torch.randint(50, (SAMPLES, TIME))
    for model, args, kwargs in (
        (convolution, (torch.randn(4, 3, 9, 9),), {}),
        (Words(), (ids,), {}),
        (Words(), (), {"ids": ids, "mask": torch.ones(SAMPLES, TIME)}),
    ):
        run = puredrop.reproducible(model, strict=True)
        model(*args, **kwargs)
        assert {site.samples for site in run.report.sites} == {"shown"}


def test_compiled_models_are_tried_on_a_copy():
    torch._dynamo.reset()
    model, run = pinned(WRONG["time first"][0])
    compiled = torch.compile(model, backend="eager")
    compiled(INPUTS)
    assert [site.samples for site in run.report.sites] == ["refused"]
    with pytest.raises(ValueError, match=r"sample_dims=\{'drop': 1\}"):
        compiled(INPUTS)
    model = Net()
    run = puredrop.reproducible(model)
    torch.compile(model, backend="eager")(torch.randn(4, 5, 16))
    assert {site.samples for site in run.report.sites} == {"shown"}
