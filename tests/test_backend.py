"""Which backend and instruction set run, and how the library lives in a process: threads, forks, pools."""

import ctypes
import os
import subprocess
import sys
import threading

import pytest
import torch

import puredrop
from oracles import same_bits
from puredrop import Key, _backend
from puredrop.functional import dropout, relu_dropout

KEY = Key(3)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=100
    )


def test_a_forced_missing_backend_raises_and_lists_those_present(use):
    with pytest.raises(ValueError, match=r"PUREDROP_BACKEND is 'triton'; this installation has: .*reference"):
        use(backend="triton")
    with pytest.raises(ValueError, match="PUREDROP_BACKEND is 'triton'"):
        dropout(torch.ones(3), 0.5)
    for name in ("reference", "cpu"):
        use(backend=name)
        assert puredrop.backend() == name
        assert (_backend.library() is not None) == (name == "cpu")


def test_a_forced_missing_instruction_set_raises_and_lists_those_present(use):
    for name in ("avx1024", "neon" if "x86" in os.uname().machine else "avx2"):
        with pytest.raises(ValueError, match=rf"PUREDROP_ISA is '{name}'; this machine runs: .*scalar \(or unset"):
            use(isa=name)


def test_the_command_says_what_runs_and_takes_one_line_for_an_error():
    command = [sys.executable, "-m", "puredrop", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PUREDROP_ISA": "scalar"})
    assert done.stdout.endswith("backend: cpu (scalar)\n")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PUREDROP_ISA": "mmx"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "PUREDROP_ISA is 'mmx'" in done.stderr


def test_without_the_library_the_reference_serves(use, monkeypatch):
    monkeypatch.setattr(_backend, "_path", lambda: None)
    use()
    assert puredrop.backend() == "reference"
    assert int(KEY.fold_in(7)) == int(puredrop.rng.fold_in(KEY.tensor(), 7)) % 2**64
    with pytest.raises(ValueError, match="PUREDROP_ISA is 'scalar'; this installation has no compiled library"):
        use(isa="scalar")


def test_backends_give_the_same_bits(use):
    x = torch.randn(70_001)
    results = []
    for name in ("reference", "cpu"):
        use(backend=name)
        torch.manual_seed(5)
        y = x.clone().requires_grad_()
        out = dropout(y, 0.3)
        results.append((out.detach(), torch.autograd.grad(out, y, torch.ones_like(x))[0]))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_there_is_one_openmp_pool():
    done = run(
        "import torch, puredrop; puredrop.functional.dropout(torch.randn(10**6))\n"
        "maps = {line.split('/')[-1].strip() for line in open('/proc/self/maps') if '.so' in line}\n"
        "assert any('puredrop_cpu' in name for name in maps)\n"
        "print(*sorted(name for name in maps if 'omp' in name))"
    )
    assert len(done.stdout.split()) == 1, done


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_set_num_threads_is_obeyed(threads):
    if threads > 1 and not hasattr(ctypes.CDLL(torch._C.__file__), "torch_parallel_for"):
        pytest.skip("this torch has no torch_parallel_for (before 2.10), so the library runs on one thread")
    done = run(
        f"import os, torch, puredrop; torch.set_num_threads({threads})\n"
        "x = torch.randn(10**6); before = len(os.listdir('/proc/self/task'))\n"
        "puredrop.functional.dropout(x, key=puredrop.Key(1)); print(len(os.listdir('/proc/self/task')) - before)"
    )
    assert done.stdout.split() == [str(threads - 1)], done


def test_small_tensors_wake_no_thread():
    done = run(
        "import os, torch, puredrop; x = torch.randn(30_000); before = len(os.listdir('/proc/self/task'))\n"
        "puredrop.functional.dropout(x, key=puredrop.Key(1)); print(len(os.listdir('/proc/self/task')) - before)"
    )
    assert done.stdout.split() == ["0"], done


def test_masks_do_not_depend_on_the_number_of_threads():
    x = torch.randn(40, 11, 333)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results += [[dropout(y, 0.1, key=KEY) for y in (x, x.transpose(0, 2), x[:, ::2], x[..., :1].expand_as(x))]]
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_forked_child_is_served():
    # NumPy compares: torch's own loops wait for ever there for the parent's threads, as ours would without care.
    done = run(
        "import os, torch, puredrop; x = torch.randn(10**6); d = puredrop.functional.dropout\n"
        "expected = d(x, key=puredrop.Key(1)); child = os.fork()\n"
        "if child == 0: os._exit(0 if (d(x, key=puredrop.Key(1)).numpy() == expected.numpy()).all() else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    assert done.stdout.split() == ["0"], done


def test_several_threads_at_once():
    x = torch.randn(300_000)
    expected = [dropout(x, 0.3, key=Key(i)) for i in range(8)]
    wrong = []

    def work(i):
        for _ in range(10):
            y = x.clone().requires_grad_()
            out = dropout(y, 0.3, key=Key(i))
            (gradient,) = torch.autograd.grad(out, y, x)
            if not (same_bits(out, expected[i]) and same_bits(gradient, expected[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_each_thread_draws_from_the_one_generator():
    # torch's generator is one for the process: fresh keys of two threads are the stream of one.
    torch.manual_seed(1)
    expected = {int(puredrop.rng.draw_key(torch.device("cpu"))) % 2**64 for _ in range(200)}
    torch.manual_seed(1)
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(puredrop.rng.as_key_number(None) for _ in range(100)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == expected


def test_watchers_see_the_operator():
    x = torch.randn(40, requires_grad=True)
    with torch.profiler.profile() as profile:
        dropout(x, 0.3, key=KEY)
    assert any(event.name == "puredrop::dropout" for event in profile.events())


def test_writing_in_place_is_noticed_by_autograd():
    for write in (dropout, relu_dropout):
        x = torch.randn(40, requires_grad=True)
        hidden = x * 1
        kept = hidden.square()
        with torch.no_grad():
            write(hidden, 0.3, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.sum().backward()


def test_fresh_keys_after_inference_mode():
    code = (
        "import torch, puredrop\n"
        "with torch.inference_mode(): puredrop.functional.dropout(torch.ones(5))\n"
        "torch.manual_seed(1); a = puredrop.functional.dropout(torch.ones(50))\n"
        "torch.manual_seed(1); b = puredrop.functional.dropout(torch.ones(50), key=puredrop.Key(int("
        "torch.randint(-2**63, 2**63 - 1, ()))))\n"
        "assert torch.equal(a, b)\n"
        "with torch.inference_mode(): print(puredrop.functional.dropout(torch.ones(5), inplace=True).shape[0])"
    )
    assert run(code).stdout.split() == ["5"]
