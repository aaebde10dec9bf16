"""Ask how many small faults in the core the tests would find: a seeded sample of mutants, each run against its tests.

    python tools/mutants.py --out mutants.json               # 300 mutants; the same command goes on where it stopped
    python tools/mutants.py --out mutants.json --limit 5     # five more of the sample
    python tools/mutants.py --out mutants.json --report      # only the figures and the survivors so far

A mutant is the package with one change: another operator, a constant off by one, a condition negated, a statement
dropped, None returned, two arguments swapped. Each runs in a copy of the tree, against the tests that cover its file.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The tests that cover each file, the quickest to fail first. The longest prefix of a path counts.
TESTS = {
    "rng.py": ["tests/test_rng.py", "tests/ops", "tests/test_backend.py", "tests/pinning/test_keys.py"],
    "ops/": ["tests/ops", "tests/test_functional.py", "tests/test_fused.py", "tests/test_opinfo.py", "tests/nn"],
    "ops/_source.py": ["tests/pinning/test_keys.py", "tests/ops", "tests/thinning/test_sharing.py", "tests/ensemble"],
    "ops/_shards.py": ["tests/ops/test_shards.py", "tests/pinning/test_processes.py"],
    "compact/": ["tests/thinning"],
    "members/": ["tests/ensemble", "tests/explanation"],
    "ensemble/running_statistics.py": ["tests/test_statistics.py", "tests/ensemble"],
    "ensemble/confidence_sequence.py": ["tests/test_statistics.py", "tests/ensemble"],
    "ensemble/calibration.py": ["tests/ensemble/test_calibration.py", "tests/ensemble"],
    "ensemble/prediction.py": ["tests/ensemble", "tests/test_predict_command.py"],
}
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult, ast.BitXor: ast.BitOr,
}  # fmt: skip


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield (kind of change, what stands in the place of the node)."""
    new: Any = copy.deepcopy(node)
    if isinstance(node, ast.Compare):
        new.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield "comparison", new
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in ARITHMETIC:
        new.op = ARITHMETIC[type(node.op)]()
        yield "arithmetic", new
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and, or", new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "sign", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "constant", ast.Constant(node.value + 1)
        yield "constant", ast.Constant(node.value - 1)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "return", ast.Return(ast.Constant(None))
    elif (
        isinstance(node, ast.Call) and len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args[:2])
    ):
        new.args[:2] = reversed(new.args[:2])
        yield "arguments", new
    drops = isinstance(node, (ast.AugAssign, ast.Raise)) or (
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    )
    stores = isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript))
    if drops or stores:
        yield "statement", ast.Pass()


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run: no annotations, no texts of errors, nothing for type checkers, no `__all__`."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "type_params") or (isinstance(tree, ast.Raise) and field == "exc"):
            continue
        for node in value if isinstance(value, list) else [value]:
            silent = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            listing = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__slots__")
            if isinstance(node, ast.AST) and not silent and not listing and not isinstance(node, ast.JoinedStr):
                yield node
                yield from nodes(node)


def mutants(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every mutant of a file: its place, its kind, the text that stands there and the text to put there."""
    text = path.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def add(node: Any, kind: str, new: str) -> dict[str, Any]:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        return {"line": node.lineno, "start": start, "end": end, "kind": kind, "new": new}

    for node in nodes(ast.parse(text)):
        if isinstance(node, (ast.If, ast.While, ast.IfExp)):
            yield add(node.test, "condition", f"(not ({ast.unparse(node.test)}))")
        if hasattr(node, "lineno"):
            for kind, new in replacements(node):
                code = ast.unparse(ast.fix_missing_locations(new))
                yield add(node, kind, f"({code})" if isinstance(new, ast.expr) else code)


def tests_of(name: str) -> list[str]:
    """Return the tests that cover a file: its doctests, then those of the longest prefix in the table."""
    prefix = max((prefix for prefix in TESTS if name.startswith(prefix)), key=len)
    return [f"src/puredrop/{name}", *TESTS[prefix]]


def sample(number: int, seed: int) -> list[dict[str, Any]]:
    """Return mutants drawn at random from all of the covered files, with their names."""
    package = ROOT / "src" / "puredrop"
    files = sorted(path for path in package.rglob("*.py") if str(path.relative_to(package)).startswith(tuple(TESTS)))
    everything = [{"file": str(path.relative_to(package)), **each} for path in files for each in mutants(path)]
    return random.Random(seed).sample(everything, min(number, len(everything)))


def mutated(mutant: dict[str, Any]) -> bytes:
    """Return the text of a mutant's file."""
    text: bytes = (ROOT / "src" / "puredrop" / mutant["file"]).read_bytes()
    return text[: mutant["start"]] + str(mutant["new"]).encode() + text[mutant["end"] :]


def difference(mutant: dict[str, Any]) -> str:
    """Return the changed lines."""
    before = (ROOT / "src" / "puredrop" / mutant["file"]).read_text().splitlines()
    lines = difflib.unified_diff(before, mutated(mutant).decode().splitlines(), lineterm="", n=0)
    return "\n".join([f"{mutant['file']}:{mutant['line']} ({mutant['kind']})", *list(lines)[3:]])


def passes(tree: Path, tests: list[str], seconds: float) -> str:
    """Return "passed", "failed" or "timeout" for the tests in a copy of the tree."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    try:
        done = subprocess.run(
            [*command, "-m", "not integration", *tests],
            cwd=tree,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    return "passed" if done.returncode == 0 else "failed"


def copied(folder: Path) -> Path:
    """Return a copy of what the tests need, with the compiled library."""
    for name in ("src", "tests", "tools", "docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def judged(mutant: dict[str, Any], tree: Path, seconds: float) -> str:
    """Return whether the tests found a mutant; the copy is as before afterwards."""
    path = tree / "src" / "puredrop" / mutant["file"]
    before = path.read_bytes()
    path.write_bytes(mutated(mutant))
    try:
        return {"passed": "survived"}.get(end := passes(tree, tests_of(mutant["file"]), seconds), end)
    finally:
        path.write_bytes(before)


def upper_bound(survived: int, total: int, confidence: float = 0.95) -> float:
    """Return the one-sided Clopper-Pearson bound of a share: the largest that `survived` or fewer do not refute."""
    low, high = survived / total, 1.0
    for _ in range(60):
        share = (low + high) / 2
        chance = sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(survived + 1))
        low, high = (share, high) if chance > 1 - confidence else (low, share)
    return high


def report(results: dict[str, str], drawn: list[dict[str, Any]]) -> None:
    """Print the share of survivors with its bound, and each survivor as a difference."""
    ended = [(mutant, results[str(i)]) for i, mutant in enumerate(drawn) if str(i) in results]
    survivors = [mutant for mutant, end in ended if end == "survived"]
    print(*(difference(mutant) for mutant in survivors), sep="\n\n")
    if ended:
        share, bound = len(survivors) / len(ended), upper_bound(len(survivors), len(ended))
        print(f"\n{len(survivors)} of {len(ended)} survived: {share:.1%}, at most {bound:.1%} with 95 % confidence")


def main() -> None:
    """Run the sample, or go on with it, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), help="the file of results")
    parser.add_argument("--number", type=int, default=300, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--limit", type=int, default=None, help="run no more than so many of them now")
    parser.add_argument("--workers", type=int, default=1, help="copies of the tree that run at a time, one per core")
    parser.add_argument(
        "--seconds", type=float, default=600, help="longest time of a mutant; one that takes longer is found"
    )
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    drawn = sample(options.number, options.seed)
    digest = hashlib.blake2b(json.dumps(drawn).encode(), digest_size=8).hexdigest()
    state: dict[str, Any] = {"sample": digest, "results": {}}
    if options.out.exists():
        state = json.loads(options.out.read_text())
    if state["sample"] != digest:
        raise SystemExit(f"{options.out} holds results of another sample or of other sources; expected {digest}")
    results: dict[str, str] = state["results"]
    passed: list[list[str]] = state.setdefault("passed", [])  # without a mutant
    missing = [] if options.report else [i for i in range(len(drawn)) if str(i) not in results][: options.limit]

    def work(share: list[int]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tree = copied(Path(folder))
            for i in share:
                tests = tests_of(drawn[i]["file"])[1:]
                if tests not in passed:
                    if passes(tree, tests, 10 * options.seconds) != "passed":
                        raise SystemExit(f"the tests fail without a mutant, so they find nothing: {' '.join(tests)}")
                    passed.append(tests)
                results[str(i)] = judged(drawn[i], tree, options.seconds)
                temporary = options.out.with_suffix(f".{share[0]}.part")
                temporary.write_text(json.dumps({**state, "results": dict(results), "passed": list(passed)}))
                temporary.replace(options.out)
                print(
                    f"{len(results)} of {len(drawn)}: {drawn[i]['file']}:{drawn[i]['line']} {results[str(i)]}",
                    flush=True,
                )

    shares = [missing[k :: options.workers] for k in range(options.workers)]
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(work, [share for share in shares if share]))
    report(results, drawn)


if __name__ == "__main__":
    main()
