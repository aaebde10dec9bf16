import argparse
from dataclasses import MISSING, dataclass

import pytest

from puredrop._options import add_options, flag, names, numbers, option, rate_range, read_options


@dataclass(frozen=True)
class Options:
    data: str = option(MISSING, "the data", positional=True)
    out: str = option(MISSING, "the output")
    batch_size: int = option(8, "rows of a batch", group="training", type=int, metavar="N")
    rates: tuple[float, ...] = option((0.5,), "rates", group="training", type=numbers(float, "0.5,0.3"))
    columns: tuple[str, ...] | None = option(None, "columns", type=names)
    resume: bool = option(False, "go on")


def parsed(*line):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Options)
    return read_options(Options, parser.parse_args(line))


def test_a_dataclass_is_made_from_the_line_and_its_defaults():
    assert parsed("d", "--out", "o") == Options("d", "o")
    line = ("d", "--out", "o", "--batch-size", "3", "--rates", "0,1", "--columns", "a,b", "--resume")
    assert parsed(*line) == Options("d", "o", 3, (0.0, 1.0), ("a", "b"), True)
    assert flag("batch_size") == "--batch-size"


def test_headings_follow_the_groups():
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    text = parser.format_help()
    assert text.index("training:") < text.rindex("--batch-size N")


@pytest.mark.parametrize("missing", [("d",), ("--out", "o")])
def test_what_has_no_default_must_be_given(missing, capsys):
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parsed(*missing)


def test_ranges_and_lists_are_checked():
    assert rate_range("0:0.8:0.4") == (0.0, 0.4, 0.8)
    for parse, text in ((rate_range, "0:1"), (rate_range, "0:1:0"), (numbers(int, "1,2"), "1,x")):
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected"):
            parse(text)
