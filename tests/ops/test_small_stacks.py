"""Threads with little stack: musl and macOS give 128 to 512 KiB, `threading.stack_size` as little as 32."""

import subprocess
import sys

# Every path through the library: runs and their tails, named, shared, scattered and tiled elements, each operation, and
# the compacted layers; forward, and backward, which autograd runs in the same thread on the CPU.
CODE = """
import threading
import torch
from puredrop import Key, Window
from puredrop.compact.kept import Kept
from puredrop.compact.panels import gather, scatter
from puredrop.functional import bias_dropout_add, dropout, gelu_dropout, relu_dropout

flat = torch.randn(70_001, generator=torch.Generator().manual_seed(1))
square = torch.randn(300, 257, generator=torch.Generator().manual_seed(2))
heads = flat[:49_152].view(4, 96, 2, 64).transpose(1, 2)
ids = torch.arange(300).flip(0)

def compacted():
    kept = Kept.from_mask(dropout(torch.ones(3, 300), 0.5, key=Key(4)))
    panels = gather(square, kept, None, 2.0, torch.empty(3, kept.width, 257))
    return scatter(panels, kept, None, 1.0, torch.empty(300, 257))

def both(x, function, *more):
    x = x.detach().requires_grad_()
    output = function(x, *more, p=0.1, key=Key(3))
    return output.detach(), torch.autograd.grad(output, x, torch.ones_like(output))[0]

def results():
    yield compacted()
    yield dropout(square, 0.1, key=Key(3), window=Window((400, 257), (7, 0)))
    yield dropout(square, 0.1, key=Key(3), sample_ids=ids)
    yield torch.ops.puredrop.dropout(square.t(), Key(3).tensor(), torch.tensor(0.1), [0], None, None, None, 0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for x in (flat.to(dtype), square.to(dtype), square.to(dtype).t(), heads.to(dtype), square.to(dtype)[:, ::3]):
            yield from both(x, dropout)
            yield from both(x, relu_dropout)
            yield from both(x, gelu_dropout)
            yield from both(x, bias_dropout_add, x[-1], x)

expected = list(results())
found = []
threading.stack_size(32 * 1024)
thread = threading.Thread(target=lambda: found.extend(results()))
thread.start()
thread.join()
assert len(found) == len(expected) == 164, len(found)
assert all(torch.equal(a, b) for a, b in zip(found, expected))
"""


def test_a_stack_of_32_kib_is_enough(variant):
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
