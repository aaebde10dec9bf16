"""What the linker and the compiler have put into the compiled library against misuse, read from its ELF headers."""

import struct
import sys

import pytest

from puredrop import _backend

LOAD, DYNAMIC, STACK, RELRO = 1, 2, 0x6474E551, 0x6474E552
EXECUTE, WRITE = 1, 2
FLAGS, FLAGS_1 = 30, 0x6FFFFFFB


def segments(content):
    """Type, flags, offset in the file and size there of each segment of a 64-bit little-endian file."""
    assert content[:6] == b"\x7fELF\x02\x01"
    (start,), (size, count) = struct.unpack_from("<Q", content, 32), struct.unpack_from("<2H", content, 54)
    for number in range(count):
        kind, flags, offset, _, _, length = struct.unpack_from("<2I4Q", content, start + number * size)
        yield kind, flags, offset, length


def hardening(content):
    """Which of the protections a library has."""
    found = {kind: (flags, offset, length) for kind, flags, offset, length in segments(content)}
    _, offset, length = found[DYNAMIC]
    tags = dict(struct.iter_unpack("<qQ", content[offset : offset + length // 16 * 16]))
    return {
        "stack is data": not found.get(STACK, (EXECUTE,))[0] & EXECUTE,
        "no segment is writable and executable": not any(
            kind == LOAD and flags & EXECUTE and flags & WRITE for kind, flags, _, _ in segments(content)
        ),
        "functions are bound at the start": bool(tags.get(FLAGS, 0) & 8 and tags.get(FLAGS_1, 0) & 1),
        "bound addresses are read-only": RELRO in found,
        "stack is guarded": b"__stack_chk_fail" in content,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_the_library_is_hardened():
    protections = hardening(_backend._path().read_bytes())
    assert [name for name, has in protections.items() if not has] == []
