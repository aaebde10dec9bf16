"""Attack puredrop's promises with random cases, and print a table: what is promised, how many cases, how many failed.

    python tools/attack.py                              # every attack, a few minutes
    python tools/attack.py kernel --cases 1000000       # one attack; before a release
    python tools/attack.py kernel --seed 3 --case 4711  # one case again, as a failure prints it

The exit code is 1 where a promise was broken. docs/reliability.md says what each attack does, and holds its figures.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from attacks import faults, flips, kernel, parsers, threads
from attacks.outcome import Outcome

__all__ = ["ATTACKS", "main"]

ATTACKS: dict[str, tuple[Callable[..., Outcome], int]] = {
    "kernel": (kernel.attack, 10_000),
    "parsers": (parsers.attack, 2000),
    "flips": (flips.attack, 1000),
    "faults": (faults.attack, 200),
    "threads": (threads.attack, 200),
}
"""Each attack, and its cases where --cases is not given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run attacks, print each failure with the command that repeats it, then the table; return the exit code."""
    parser = argparse.ArgumentParser(description="Attack puredrop's promises with random cases.")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"of {', '.join(ATTACKS)} (default: all)")
    parser.add_argument("--cases", type=int, metavar="N", help="cases of each attack")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random choices (default: 1)")
    parser.add_argument("--case", type=int, metavar="N", help="run this case alone")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.attacks if name not in ATTACKS]
    if unknown:
        parser.error(f"ATTACK is {unknown[0]!r}; expected {', '.join(ATTACKS)}")
    rows = []
    for name in arguments.attacks or ATTACKS:
        run, cases = ATTACKS[name]
        cases = 1 if arguments.case is not None else arguments.cases or cases
        start = time.monotonic()
        outcome = run(cases, arguments.seed, arguments.case or 0)
        for number, problem in outcome.failures.items():
            print(f"FAILED  {reproduction(name, arguments.seed, number)}\n        {' '.join(problem.split())}")
        rows.append((name, outcome, time.monotonic() - start))
    print(table(rows))
    return 1 if any(outcome.failures for _, outcome, _ in rows) else 0


def reproduction(name: str, seed: int, number: int) -> str:
    """Return the command that runs one case again."""
    return shlex.join(["python", "tools/attack.py", name, "--seed", str(seed), "--case", str(number)])


def table(rows: Sequence[tuple[str, Outcome, float]]) -> str:
    """Return outcomes, each with its attack's name and seconds, as a Markdown table."""
    lines = ["| attack | promise | cases | failed | seconds | of these |", "|---|---|---|---|---|---|"]
    for name, outcome, seconds in rows:
        cells = [name, outcome.promise, f"{outcome.cases:,}", f"{len(outcome.failures):,}", f"{seconds:.0f}"]
        lines.append(f"| {' | '.join([*cells, outcome.detail])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
