"""Fuzz puredrop's readers of files, guided by the lines that an input reaches.

    pip install atheris
    python tools/guided.py csv -runs=100000     # libFuzzer's options; -max_total_time=600 for ten minutes

A reader may raise ValueError or OSError, which the command prints as one line. Any other exception stops the run: it is
printed with the bytes that raise it, which lie in a file named crash-….
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

with atheris.instrument_imports(include=["puredrop"]):
    from puredrop._files import load_checkpoint, read_tensors, save_checkpoint
    from puredrop.compare.results import FORMAT, load_results
    from puredrop.compare.tables import TableOptions, load_table
    from puredrop.inspection.weights import load_weights
    from puredrop.linting.source import check_paths

_TABLE = pd.DataFrame({"a": np.arange(80.0), "b": list("xyzw") * 20, "label": [0, 1] * 40})
_NET = torch.nn.Linear(2, 2)
_SOURCE = "import torch\nimport torch.nn.functional as F\n\n\ndef f(x):\n    return F.dropout(x, 0.5)\n"


_OPTIONS = TableOptions("label", None, None, None, 0, None)
_TENSORS, _RESULTS = {"a": torch.ones(3)}, {"format": FORMAT, "arms": {"none": 1}}
_ARRAYS: dict[str, Any] = {"x": np.ones((80, 3)), "label": np.arange(80) % 2}

# Files without a checksum are read, too, so that the fuzzer gets beyond it; a checkpoint has to have one.
_READERS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "csv": ("r.csv", lambda path: load_table(path, _OPTIONS), lambda path: _TABLE.to_csv(path, index=False)),
    "parquet": ("r.parquet", lambda path: load_table(path, _OPTIONS), lambda path: _TABLE.to_parquet(path)),
    "npz": ("r.npz", lambda path: load_table(path, _OPTIONS), lambda path: np.savez(path, **_ARRAYS)),
    "results": ("r.json", load_results, lambda path: path.write_text(json.dumps(_RESULTS))),
    "weights": ("w.safetensors", lambda path: read_tensors(path, ""), lambda path: save_file(_TENSORS, path)),
    "checkpoint": ("c.safetensors", load_checkpoint, lambda path: save_checkpoint(path, _TENSORS, {"b": 1})),
    "state": ("w.pt", lambda path: load_weights(_NET, path, ""), lambda path: torch.save(_NET.state_dict(), path)),
    "source": ("code.py", lambda path: check_paths([path]), lambda path: path.write_text(_SOURCE)),
}
"""For each kind of file: its name, its reader, and a writer of a valid one, from which the fuzzer starts."""


def main() -> None:
    """Fuzz the reader that the first argument names."""
    kind = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if kind not in _READERS:
        sys.exit(f"expected one of {', '.join(_READERS)}, and then options of libFuzzer")
    name, read, write = _READERS[kind]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        corpus, path = Path(folder) / "corpus", Path(folder) / name
        corpus.mkdir()
        write(corpus / name)

        def read_once(data: bytes) -> None:
            path.write_bytes(data)
            with contextlib.suppress(ValueError, OSError), contextlib.redirect_stderr(io.StringIO()):
                read(path)

        atheris.Setup([*sys.argv, str(corpus)], read_once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
