import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import puredrop
from puredrop import Key, schedules
from puredrop.schedules import RateScheduler


def test_rates_by_their_formulas():
    for step in range(12):
        t = min(step / 10, 1)
        assert schedules.constant(0.3)(step) == 0.3
        assert math.isclose(schedules.linear(0.1, 0.5, 10)(step), 0.1 + 0.4 * t)
        assert math.isclose(schedules.early(0.4, 10)(step), 0.4 * (1 - t), abs_tol=1e-15)
        assert schedules.late(0.4, 10)(step) == (0.4 if step >= 10 else 0)
        keep = (1 - 0.6) * math.exp(-5 * t) + 0.6
        assert math.isclose(schedules.curriculum(0.4, 10, gamma=5)(step), 1 - keep)
        assert math.isclose(schedules.cosine(0.5, 0.1, 10)(step), 0.1 + 0.4 * (1 + math.cos(math.pi * t)) / 2)


def test_a_scheduled_rate_is_not_compiled_again():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 8), puredrop.nn.Dropout(key=Key(1)), puredrop.nn.GaussianDropout(key=Key(1)))
    scheduler, counter = RateScheduler(model, schedules.linear(0.0, 0.9, 9)), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.randn(400, 8)
    for step in range(5):
        share = (compiled(x) == 0).double().mean().item()
        # 3200 decisions: 5 standard errors are .044
        assert abs(share - 0.1 * step) < 0.045
        assert torch.equal(compiled(x), model(x))
        scheduler.step()
    assert counter.frame_count == 1
    assert math.isclose(scheduler.get_last_rate(), 0.5)


def test_state_dict_resumes():
    first = RateScheduler([puredrop.nn.Dropout()], schedules.cosine(0.0, 0.5, 20))
    for _ in range(7):
        first.step()
    layer = puredrop.nn.Dropout()
    second = RateScheduler([layer], schedules.cosine(0.0, 0.5, 20))
    second.load_state_dict(first.state_dict())
    assert float(layer.p) == first.get_last_rate()
    with pytest.raises(ValueError, match="expected that of this schedule, linear"):
        RateScheduler([layer], schedules.linear(0.0, 0.5, 20)).load_state_dict(first.state_dict())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="steps is 0"):
        schedules.linear(0.0, 0.5, 0)
    with pytest.raises(ValueError, match=r"probability has to be between 0 and 1, but got 1\.5"):
        schedules.linear(0.0, 1.5, 3)
    with pytest.raises(ValueError, match="convert the model first"):
        RateScheduler(nn.Dropout(), schedules.constant(0.3))
    with pytest.raises(ValueError, match="has no layer of"):
        schedules.over_depth(nn.Linear(2, 2), schedules.linear(0, 0.1))


def test_a_scheduler_prints_its_place():
    layer = puredrop.nn.Dropout()
    scheduler = schedules.RateScheduler([layer], schedules.linear(0.0, 0.5, 4))
    scheduler.step()
    assert repr(scheduler) == "RateScheduler(linear, step 1 of 4, p=0.125)"


def test_a_schedule_prints_its_rates():
    assert repr(schedules.cosine(0.1, 0.4, steps=9)) == "Schedule(cosine, p=0.1 to 0.4 over 9 steps)"
    assert repr(schedules.late(0.2, 5)) == "Schedule(late, p=0 to 0.2 over 5 steps)"
    assert repr(schedules.constant(0.3)) == "Schedule(constant, p=0.3)"
