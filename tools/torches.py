"""Run the test suite on several versions of torch, each in an environment of its own.

    python tools/torches.py                            # the floor, the pinned version, the newest of the registry
    python tools/torches.py 2.6.0 --tests tests/ops    # one version, a part of the suite
    python tools/torches.py --install-only             # make the environments, run nothing

An environment takes 3 to 8 GB below --folder, most of it CUDA, and serves the next call again.
"""

import argparse
import re
import subprocess
import sys
import venv
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
FLOOR, PINNED = "2.6.0", "2.13.0"
# The oldest numpy that the project supports belongs to the oldest torch, and a pyarrow that reads it. Two warnings are
# that torch's own, and the table of torch's behaviours describes the pinned version.
NEEDS = {FLOOR: ["numpy<2", "pyarrow<22"]}
TABLE = "tests/test_torch_surface.py"
OPTIONS = {
    FLOOR: [
        "-W",
        "ignore:Skipping serialization",
        "-W",
        "ignore::FutureWarning",
        f"--ignore={TABLE}",
    ]
}


def newest() -> str:
    """Return the newest torch that the registry serves."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "torch"], capture_output=True, text=True, check=True
    )
    return str(re.findall(r"Available versions: ([\d.]+)", listing.stdout)[0])


def environment(version: str, folder: Path) -> Path:
    """Return the Python of the environment for a version of torch; make it where it is missing."""
    home = folder / f"torch-{version}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile"]
        subprocess.run([*pip, f"torch=={version}", *NEEDS.get(version, [])], check=True)
        (home / "constraints.txt").write_text("\n".join([f"torch=={version}", *NEEDS.get(version, [])]))
        subprocess.run([*pip, "-c", str(home / "constraints.txt"), "--editable", f"{ROOT}[dev]"], check=True)
        (home / "complete").touch()
    return python


def outcome(version: str, python: Path, options: list[str]) -> str:
    """Run the tests and return a row of the table, and the tests that failed."""
    report = python.parents[1] / "report.xml"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "--dist", "loadfile", f"--junitxml={report}"]
    elsewhere = [] if version == PINNED else [f"--deselect={TABLE}::test_the_page_is_this_table"]
    ended = subprocess.run(
        [*command, *elsewhere, *OPTIONS.get(version, []), *options], cwd=ROOT, check=False
    ).returncode
    if not report.exists():
        return f"| {version} | pytest ended with {ended} before any test | | | |"
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    minutes = float(suite.get("time", 0)) / 60
    row = f"| {version} | {total - skipped - len(failed)} | {len(failed)} | {skipped} | {minutes:.1f} |"
    return "\n".join([row, *(f"  failed on {version}: {name}" for name in failed)])


def main() -> None:
    """Make the environments, run the suite in each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help="versions of torch; default: the floor, the pinned and the newest")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv" / "torches", help="where the environments lie")
    parser.add_argument("--tests", nargs="+", default=[], help="paths to test; default: the whole suite")
    parser.add_argument("--workers", default="2", help="processes of pytest-xdist")
    parser.add_argument("--all", action="store_true", help="the integrations, too")
    parser.add_argument("--install-only", action="store_true", help="make the environments and run nothing")
    options = parser.parse_args()
    core = [] if options.all else ["-m", "not integration"]
    rows = []
    for version in options.versions or [FLOOR, PINNED, newest()]:
        python = environment(version, options.folder.resolve())
        if not options.install_only:
            rows.append(outcome(version, python, ["-n", options.workers, *core, *options.tests]))
    if rows:
        print("| torch | passed | failed | skipped | minutes |", "|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
