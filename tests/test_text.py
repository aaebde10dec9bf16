from puredrop._text import counted, first_line, one_line, table


def test_a_table_pads_each_column_to_its_widest_cell():
    assert table([("a", "bb", ""), ("cccc", "d", "e")]) == "a     bb\ncccc  d   e"


def test_numbers_with_their_nouns():
    assert [counted(number, "site") for number in (0, 1, 2)] == ["0 sites", "1 site", "2 sites"]


def test_errors_in_one_line():
    assert first_line(ValueError("first\nsecond")) == "first"
    assert first_line(ValueError("first\nsecond"), 3) == "fir"
    assert first_line(KeyError()) == "KeyError"
    assert one_line(ValueError("a\n b")) == "a b"
    assert one_line(OSError("a\n b")) == "OSError: a b"
    assert one_line(OSError("a\n b"), (OSError,)) == "a b"
    assert one_line(ValueError()) == "ValueError"
