"""Random changes of valid files: of bytes, of text, and of JSON's values."""

from __future__ import annotations

import copy
import json
from typing import Any

from attacks.outcome import Choices

__all__ = ["as_json", "changed_bytes", "changed_json", "changed_text", "odd_text"]

_WORDS = (
    "", "nan", "inf", "-1", "0", "1e999", "1e-400", str(2**63), str(2**64), "-0.0", "1,1", '"', "'", "\\", "\n", "\r",
    "\0", "é", "\ud7ff", "\N{BYTE ORDER MARK}", "ñ" * 50, "a" * 5000, "None", "true", "[]", "{}", "../..", "/dev/null",
    ":", "::", "os:getcwd", "attacked_nets:net", "attacked_nets:", "no_such:thing", "torch.nn:Linear", "%s", "{0}",
    "0:1:0", "0:0.8:1e-9", "1" * 400, "0x10", "1_000", "٣", "\x1b[31m", "--", "-", "=", "=cmd()", "<script>",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**63,
    2**200,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    [],
    [[]],
    {},
    {"x": 1},
    [None],
    "nan",
)


def odd_text(choices: Choices) -> str:
    """Return a text that parsers stumble over."""
    if choices.chance(0.8):
        return choices.choice(_WORDS)
    return "".join(chr(choices.choice((choices.randint(1, 127), choices.randint(1, 0xD7FF)))) for _ in range(5))


def changed_bytes(choices: Choices, data: bytes) -> bytes:
    """Return data with one to four changes: bits, bytes, cuts, repetitions, insertions."""
    result = bytearray(data)
    for _ in range(choices.randint(1, 4)):
        at, end = sorted(choices.randint(0, len(result)) for _ in range(2))
        end = min(end, at + choices.choice((1, 4, 64, len(result))))
        kind = choices.randrange(6)
        if kind == 0 and result:
            result[min(at, len(result) - 1)] ^= 1 << choices.randrange(8)
        elif kind == 1:
            del result[at:end]
        elif kind == 2:
            result[at:at] = result[at:end]
        elif kind == 3:
            result[at:at] = odd_text(choices).encode(errors="replace")
        elif kind == 4:
            result[at:end] = choices.choice((b"\0", b"\xff")) * (end - at)
        else:
            result[at:end] = choices.randbytes(end - at)
    return bytes(result[: 4 * len(data) + 10_000])


def changed_text(choices: Choices, text: str) -> str:
    """Return a table's text in which cells, lines or separators are others."""
    lines = [line.split(",") for line in text.splitlines()]
    for _ in range(choices.randint(1, 3)):
        row = choices.choice((0, choices.randrange(len(lines))))
        cells = lines[row]
        kind = choices.randrange(5)
        if kind == 0 and cells:
            cells[choices.randrange(len(cells))] = odd_text(choices)
        elif kind == 1 and cells:
            del cells[choices.randrange(len(cells))]
        elif kind == 2:
            cells.append(odd_text(choices))
        elif kind == 3:
            lines[row:row] = choices.choice(([], [[""]], [list(cells)], [["a"]]))
        elif len(lines) > 1:
            del lines[choices.randrange(len(lines)) :]
            lines = lines or [[""]]
    return choices.choice(("\n", "\n", "\r\n", "\r")).join(",".join(cells) for cells in lines)


def changed_json(choices: Choices, record: Any) -> Any:
    """Return a record in which one to three values are replaced, removed or renamed."""
    record = copy.deepcopy(record)
    for _ in range(choices.randint(1, 3)):
        holder = record
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            if not keys:
                break
            key = choices.choice(keys)
            if isinstance(holder[key], (dict, list)) and holder[key] and choices.chance(0.7):
                holder = holder[key]
                continue
            kind = choices.randrange(4)
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, dict):
                holder[odd_text(choices)] = holder.pop(key)
            elif kind == 2 and isinstance(holder, list):
                holder.append(copy.deepcopy(choices.choice(_VALUES)))
            else:
                holder[key] = copy.deepcopy(choices.choice(_VALUES))
            break
    return record if choices.chance(0.97) else copy.deepcopy(choices.choice(_VALUES))


def as_json(record: Any) -> bytes:
    """Return a record as the bytes of a JSON file."""
    return json.dumps(record).encode(errors="surrogatepass")
