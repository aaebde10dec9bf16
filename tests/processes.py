"""Start Python programs as processes: one alone, or several that torchrun connects."""

import os
import subprocess
import sys

# Sums over other numbers of threads round differently.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def command(*line, size=1):
    """The command that runs a script (or `-m module`) with arguments on as many processes."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
    return [sys.executable, *several, *map(str, line)]


def start(*line, size=1, **options):
    """A running program; its errors are in its output, and it leads a session of its own that can be killed whole."""
    environment = {**os.environ, **ENVIRONMENT, **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command(*line, size=size), env=environment, **{**pipes, **options})


def run(*line, size=1, **options):
    """A program that has ended: its code and what it printed."""
    environment = {**os.environ, **ENVIRONMENT, **options.pop("env", {})}
    options = {"capture_output": True, "text": True, "timeout": 240, **options}
    return subprocess.run(command(*line, size=size), env=environment, **options)
