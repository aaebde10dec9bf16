"""Recall and precision of the check of source, on public trees whose calls were read by hand.

`check_corpus/trees.csv` names repositories and revisions, `check_corpus/verdicts.csv` the verdict on each call that
drops: mistake (with its code), right, or debatable. No code of theirs is kept here. Check the trees out, each as
FOLDER/owner+name, and run: python benchmarks/check_corpus.py FOLDER
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from puredrop.linting import Finding
from puredrop.linting.source import check_paths

HERE = Path(__file__).parent / "check_corpus"
NEAR = 2
"""Lines by which a finding may miss a verdict: a call over several lines has several."""

Row = dict[str, str]


@dataclass
class Score:
    """Findings against verdicts.

    Args:
        right: mistakes that were found.
        missed: mistakes that were not, those said to be undecided among them.
        wrong: findings where a reader sees no mistake.
        undecided: findings of PD002.
        calls: functional and attention calls that were read.
    """

    right: list[Row] = field(default_factory=list)
    missed: list[Row] = field(default_factory=list)
    wrong: list[Finding] = field(default_factory=list)
    undecided: int = 0
    calls: int = 0
    trees: int = 0

    def lines(self) -> list[str]:
        """Return the score in words."""
        mistakes = len(self.right) + len(self.missed)
        found = Counter(row["code"] for row in self.right)
        codes = Counter(row["code"] for row in (*self.right, *self.missed))
        return [
            f"{self.trees} trees, {self.calls} calls read, {mistakes} mistakes",
            f"recall {_share(len(self.right), mistakes)}",
            f"precision {_share(len(self.right), len(self.right) + len(self.wrong))}",
            f"not decided {self.undecided} of {self.calls}",
            ", ".join(f"{code} {found[code]}/{count}" for code, count in sorted(codes.items())),
        ]


def _share(count: int, total: int) -> str:
    """Return a share with its Wilson interval of 95 %."""
    if not total:
        return "-"
    share, z = count / total, 1.96
    middle, half = share + z * z / (2 * total), z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    low, high = ((middle + sign * half) / (1 + z * z / total) for sign in (-1, 1))
    return f"{count}/{total} = {share:.1%} [{low:.1%}, {high:.1%}]"


def _is_near(finding: Finding, row: Row, root: Path) -> bool:
    is_same = finding.cell == int(row["cell"] or 0) and Path(finding.file).relative_to(root) == Path(row["file"])
    return is_same and abs(finding.line - int(row["line"])) <= NEAR


def score(folder: Path, trees: Iterable[str], verdicts: dict[str, list[Row]]) -> Score:
    """Check trees and compare each finding with the verdicts near it; a finding serves one verdict."""
    result = Score()
    for name in trees:
        root = folder / name.replace("/", "+", 1)
        if not root.exists():
            print(f"skipped: {name} is not in {folder}")
            continue
        result.trees += 1
        findings = [one for one in check_paths([root]) if one.code != "PD001"]
        result.undecided += sum(one.code == "PD002" for one in findings)
        rows = verdicts[name]
        result.calls += sum(row["kind"] in ("functional", "attention") for row in rows)
        spare = [one for one in findings if one.code != "PD002"]
        for row in rows:
            near = [one for one in spare if _is_near(one, row, root)]
            if row["verdict"] == "right" or (row["verdict"] == "debatable" and not near):
                continue
            nearest = min(near, key=lambda one: abs(one.line - int(row["line"])), default=None)
            if nearest is not None:
                spare.remove(nearest)
            if row["verdict"] == "mistake":
                (result.missed if nearest is None else result.right).append(row)
        known = [row for row in rows if row["verdict"] == "mistake"]
        result.wrong += [one for one in spare if not any(_is_near(one, row, root) for row in known)]
    return result


def main() -> None:
    """Print the score of each half of the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--list", action="store_true", help="also list what was missed and what was wrong")
    arguments = parser.parse_args()
    verdicts: dict[str, list[Row]] = defaultdict(list)
    with (HERE / "verdicts.csv").open() as file:
        for row in csv.DictReader(file):
            verdicts[row["repository"]].append(row)
    with (HERE / "trees.csv").open() as file:
        trees = list(csv.DictReader(file))
    for half in ("open", "held"):
        result = score(arguments.folder, [row["repository"] for row in trees if row["half"] == half], verdicts)
        print(f"{half}:", *result.lines(), sep="\n  ")
        if arguments.list:
            for row in result.missed:
                print("  missed", row["repository"], row["file"], row["line"], row["code"])
            for one in result.wrong:
                print("  wrong", f"{one.file}:{one.line}", one.message)


if __name__ == "__main__":
    main()
