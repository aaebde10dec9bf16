"""The names that `import puredrop` gives, and what it says for those that users guess."""

import re

import pytest

import puredrop


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("dropout", "puredrop.functional.dropout"),
        ("Dropout", "puredrop.nn.Dropout"),
        ("predict", "the command `puredrop predict`"),
    ],
)
def test_a_guessed_name_is_answered_with_its_place(name, place):
    with pytest.raises(AttributeError, match=re.escape(f"no attribute '{name}'; use {place}")):
        getattr(puredrop, name)


def test_a_name_that_nothing_has():
    with pytest.raises(AttributeError, match=r"no attribute 'droput'$"):
        _ = puredrop.droput


def test_dir_lists_what_is_public():
    assert dir(puredrop) == sorted(puredrop.__all__)
    assert all(hasattr(puredrop, name) for name in dir(puredrop))
    assert not hasattr(puredrop, "version")
    assert puredrop.testing.LayerConformance


@pytest.mark.parametrize("module", [puredrop.schedules, puredrop.testing])
def test_dir_of_a_module_lists_what_is_public(module):
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in dir(module))
