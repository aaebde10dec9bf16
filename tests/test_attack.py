"""The attacks of `make attack`: a few cases of each hold, and each notices a promise that is broken on purpose."""

import os
from contextlib import contextmanager

import attack
import pytest
import torch
from attacks import faults, flips, kernel, parsers, threads

from puredrop import _backend

SEARCHES = os.environ.get("PUREDROP_TEST_PROFILE") == "search"
CASES = {"kernel": 100_000 if SEARCHES else 1000, "parsers": 120, "flips": 60, "faults": 10, "threads": 18}
MORE = {"kernel": 5000, "parsers": 1500, "flips": 500, "faults": 194, "threads": 120}


@pytest.mark.parametrize("name", attack.ATTACKS)
def test_a_few_cases(name):
    outcome = attack.ATTACKS[name][0](CASES[name], seed=1)
    assert outcome.failures == {}
    assert outcome.cases == CASES[name]


@pytest.mark.integration
@pytest.mark.parametrize("name", attack.ATTACKS)
def test_more_cases(name):
    assert attack.ATTACKS[name][0](MORE[name], seed=2).failures == {}


def test_a_kernel_that_reads_another_key_is_noticed(monkeypatch):
    from puredrop.ops import _kernel

    real = _kernel.run
    monkeypatch.setattr(_kernel, "run", lambda op, input, key, *rest, **named: real(op, input, key ^ 1, *rest, **named))
    if kernel.variants():
        assert len(kernel.attack(60, 1).failures) > 5


def test_a_kernel_that_leaves_an_element_out_is_noticed(monkeypatch):
    from puredrop.ops import _kernel

    real = _kernel.run

    def forgetful(*arguments, **named):
        output = real(*arguments, **named)
        if output.numel():
            output.select(0, 0).fill_(float("nan")) if output.dim() else output.fill_(float("nan"))
        return output

    monkeypatch.setattr(_kernel, "run", forgetful)
    if kernel.variants():
        assert len(kernel.attack(60, 1).failures) > 5


@pytest.mark.parametrize("broken", ["shared_dims", "window_offset", "strides"])
def test_a_place_that_is_packed_wrongly_is_noticed(monkeypatch, broken):
    from puredrop.ops import _kernel

    real, parameters = _kernel._layout, ("shape", "strides", "shared_dims", "window_shape", "window_offset", "named")

    def wrong(*arguments):
        given = dict(zip(parameters, arguments, strict=True))
        given[broken] = () if broken == "shared_dims" else None
        return real(**given)

    monkeypatch.setattr(_kernel, "_layout", wrong)
    if kernel.variants():
        assert kernel.attack(300, 1).failures


def test_a_wrong_answer_of_the_operator_alone_is_noticed(monkeypatch):
    from puredrop.ops import _kernel

    real = _kernel.run  # eager calls of dropout have this function under a name of their own

    def wrong(op, input, key, *rest, **named):
        return real(op, input, key ^ (op == _kernel.DROPOUT), *rest, **named)

    monkeypatch.setattr(_kernel, "run", wrong)
    if kernel.variants():
        assert sum(number % 4 == 3 for number in kernel.attack(200, 1).failures) > 5


def test_an_error_with_another_text_is_noticed(monkeypatch):
    def check(input):
        if input.dtype == torch.float64:
            raise RuntimeError(f"input has dtype {input.dtype}: {_backend.backend()}")

    monkeypatch.setattr("puredrop.ops.check_dtype", check)
    if kernel.variants():
        failures = kernel.attack(100, 1).failures.values()
        assert any("float64: cpu, reference raises RuntimeError" in failure for failure in failures)


def test_a_traceback_is_noticed(monkeypatch):
    def broken(*given):
        raise KeyError("x")

    monkeypatch.setattr("puredrop.compare.run.load_checkpoint", broken)
    failures = parsers.attack(40, 1).failures
    assert failures
    assert all("checkpoint: code -1: KeyError at" in problem for problem in failures.values())


def test_a_flip_that_passes_is_noticed(monkeypatch):
    monkeypatch.setattr("puredrop.cli.verify.checksum_state", lambda file: "right")
    assert len(flips.attack(10, 1).failures) == 10


def test_a_half_written_file_is_noticed(monkeypatch):
    @contextmanager
    def in_place(path):
        with path.open("w+b") as file:
            yield file
            file.flush()
            faults.os.fsync(file.fileno())

    monkeypatch.setattr("puredrop._files.replacing", in_place)
    assert any("half-written" in problem for problem in faults.attack(16, 1).failures.values())


def test_a_wrong_answer_in_a_thread_is_noticed(monkeypatch):
    monkeypatch.setattr(threads, "_SCENARIOS", {"broken": lambda choices: (lambda number: number != 1, False)})
    assert threads.attack(1, 1).failures == {0: "broken: {'wrong answer': 5}"}


def test_the_command_prints_a_table_and_how_to_repeat_a_failure(monkeypatch, capsys):
    assert attack.main(["threads", "--cases", "2"]) == 0
    assert "| threads | threads that share" in capsys.readouterr().out
    monkeypatch.setattr(threads, "_SCENARIOS", {"broken": lambda choices: (lambda number: number != 1, False)})
    assert attack.main(["threads", "--seed", "3", "--case", "4"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  python tools/attack.py threads --seed 3 --case 4\n" in said
    assert "| 1 | 1 |" in said
    with pytest.raises(SystemExit):
        attack.main(["nothing"])
