"""The words of the code: docstrings that say what a user needs, names that say what they hold."""

import ast
import io
import re
import statistics
import tokenize
from pathlib import Path

import house

FILES = house.sources(Path(__file__).parents[1] / "src")
TEXTS = {name: path.read_text() for name, path in FILES.items()}

# Words for which the field has others, and spellings of arguments that are no more.
BANNED = re.compile(
    r"""\b(?:(?:behind|beside|twins?|surest|least\s+sure|doubts?|rejections?|rooms?|dealt|damaged?|drives?|price\s+of
    |plays?\s+a\s+part|look(?:s|ed|ing)?\s+(?:at|for|into)|somebody|nobody\s+knows|what\s+is\s+left)\b|(?:each|but|tops)=)""",
    re.IGNORECASE | re.VERBOSE,
)


def banned(text):
    """Return the banned words in the strings, docstrings and comments of a source."""
    strings = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return [found[0] for part in (*strings, *comments) for found in BANNED.finditer(part)]


def test_docstrings_begin_with_a_verb_or_a_noun():
    assert {name: found for name, text in TEXTS.items() if (found := house.postponed(text))} == {}
    assert house.postponed('"""Of a use."""\ndef f():\n    """Restore the class."""') == [(1, "Of a use.")]


def test_words_are_the_fields():
    assert {name: found for name, text in TEXTS.items() if (found := banned(text))} == {}
    source = '"""Beside it."""\nx = f"the {y} twin"  # behind\nbehind("looked\\nfor", b"room", "but=1")'
    assert sorted(banned(source)) == ["Beside", "behind", "but=", "looked\nfor", "twin"]


def test_class_names_mean_one_thing():
    """A layer and its function or its compacted form may share torch's name; two callbacks are one for two libraries."""
    mirrors = {"Reproducible", "WatchCallback", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d"}
    assert {name: homes for name, homes in house.class_names(FILES).items() if name not in mirrors} == {}


def test_few_names_are_pronouns_or_fillers():
    total = sum(len(house.names(text)) for text in TEXTS.values())
    found = {name: fillers for name, text in TEXTS.items() if (fillers := house.fillers(text))}
    assert total > 5000
    assert sum(map(len, found.values())) < 0.005 * total, found
    assert house.fillers("class Found:\n    own: int\n    def f(self, other): self._rest, x = 1, 2") == [
        ("Found", 1),
        ("own", 2),
        ("other", 3),
        ("_rest", 3),
    ]


def test_public_docstrings_are_complete():
    assert house.undocumented() == []
    assert statistics.median(house.lengths()) >= 8


def test_an_argument_is_explained_by_more_than_its_name():
    doc = "Args:\n    num_samples, members: the number of samples.\n    x (Tensor): rows,\n        features.\n\nReturns: x"
    entries = house.documented(doc)
    assert entries == dict.fromkeys(("num_samples", "members"), "the number of samples.") | {"x": "rows, features."}
    assert house.hollow("sample_dim", "the dim of the sample")
    assert not house.hollow("num_samples", entries["members"])
