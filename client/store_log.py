"""What SQLite's write-ahead log holds, read off its headers: does recovery find all that was committed?

SQLite takes the first frame that doesn't hold for the end of the log, as it must after a power cut, and
so drops what was committed behind it without a word. The layout is section 4 of SQLite's file format
(https://www.sqlite.org/fileformat2.html#walformat); SQLCipher encrypts pages and leaves headers clear.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER, _FRAME = 32, 24  # bytes
_MAGIC = (0x377F0682, 0x377F0683)  # checksums of little-endian words, or of big-endian ones
_WORD = 1 << 32


@dataclass(frozen=True)
class LogFrames:
    """The frames of a log that belong to its present round.

    Attributes:
        salts: name the round; another one starts once all is in the main file.
        committed: number of the last frame that ends a transaction, from 1; 0: none.
    """

    salts: bytes
    committed: int


def read_log(path: Path) -> LogFrames | None:
    """The frames of the log in ``path``; None where there is none, or nothing in it.

    A header that doesn't hold counts as a log of one lost transaction.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) < _HEADER + _FRAME:
        return None
    magic, _, page_size, *_ = struct.unpack(">8I", content[:_HEADER])
    salts = content[16:24]
    if magic not in _MAGIC or _checksum(content[:24], magic) != content[24:_HEADER]:
        return LogFrames(salts, committed=1)
    committed = 0
    for number, at in enumerate(range(_HEADER, len(content), _FRAME + page_size), start=1):
        frame = content[at : at + _FRAME]
        if len(content) - at >= _FRAME + page_size and frame[8:16] == salts and any(frame[4:8]):
            committed = number
    return LogFrames(salts, committed)


def _checksum(content: bytes, magic: int) -> bytes:
    words = struct.unpack(f"{'>' if magic & 1 else '<'}{len(content) // 4}I", content)
    first = second = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) % _WORD
        second = (second + odd + first) % _WORD
    return struct.pack(">2I", first, second)
