"""TFRECORD files: records with their checksums, read and checked without TensorFlow.

A record is its length (8 bytes), the checksum of that (4), its content, and the checksum of that (4): CRC-32C, rotated
and with a constant added. No package that ntkit depends on computes it. NumPy does so for many records at once.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

# What is checked at once: in chunks, of which all take a step together.
BATCH_BYTES = 2**25
CHUNK = 256


def records(path: Path) -> Iterator[bytes]:
    """Give the records of a file, in order.

    **Raises:** `ValueError` that says what is wrong where the file is cut off or a checksum does not fit.
    """
    with open(path, "rb") as file:
        left, number = os.fstat(file.fileno()).st_size, 0
        while left > 0:
            batch, left = _batch(file, left)
            for of, parts, place in (("length", 0, 1), ("content", 2, 3)):
                found = masked_crc32c([record[parts] for record in batch])
                stored = np.array([struct.unpack("<I", record[place])[0] for record in batch], np.uint32)
                if len(bad := np.flatnonzero(found != stored)):
                    raise ValueError(f"the {of} of record {number + bad[0]} does not have its checksum")
            number += len(batch)
            yield from (record[2] for record in batch)


def _batch(file: BinaryIO, left: int) -> tuple[list[tuple[bytes, bytes, bytes, bytes]], int]:
    """Read some records, taken apart; give how many bytes of the file are left."""
    batch, size = [], 0
    while left > 0 and size < BATCH_BYTES:
        header = file.read(12)
        length = struct.unpack_from("<Q", header)[0] if len(header) == 12 else left
        # Looked at before anything of that length is read: it may be any number.
        if length > left - 16:
            raise ValueError("it ends inside a record")
        record = file.read(length + 4)
        if len(record) < length + 4:
            raise ValueError("it ends inside a record")
        batch.append((header[:8], header[8:], record[:length], record[length:]))
        left -= length + 16
        size += length + 16
    return batch, left


def masked_crc32c(messages: Sequence[bytes]) -> np.ndarray:
    """Give the checksum of each message, as TFRECORD files store it: uint32 (n,)."""
    crc = crc32c(messages)
    return (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(0xA282EAD8)


def crc32c(messages: Sequence[bytes]) -> np.ndarray:
    """Give the CRC-32C (Castagnoli) of each message: uint32 (n,).

    Without what it begins with a CRC is linear, and zeros before a message change nothing: messages are filled up in
    front to whole chunks, all chunks are taken together, byte by byte, and then each message's chunks put together.
    """
    lengths = np.array([len(message) for message in messages], int)
    chunk = min(CHUNK, int(lengths.max(initial=1)) or 1)
    counts = np.maximum(1, -(-lengths // chunk))
    ends = np.cumsum(counts) * chunk
    bytes_ = np.zeros(counts.sum() * chunk, np.uint8)
    for end, message in zip(ends, messages, strict=True):
        bytes_[end - len(message) : end] = np.frombuffer(message, np.uint8)
    # What it begins with is that the first four bytes are inverted; of a shorter message it is added at the end.
    long = lengths >= 4
    for i in range(4):
        bytes_[(ends - lengths)[long] + i] ^= 0xFF
    table = _table()
    crc = np.zeros(counts.sum(), np.uint32)
    for column in np.ascontiguousarray(bytes_.reshape(-1, chunk).T):
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> np.uint32(8))
    first = np.cumsum(counts) - counts
    total = np.zeros(len(messages), np.uint32)
    for i in range(counts.max(initial=0)):
        going = np.flatnonzero(counts > i)
        total[going] = _past_a_chunk(chunk, total[going]) ^ crc[first[going] + i]
    for short in np.flatnonzero(~long).tolist():
        total[short] = _short(messages[short])
    return total ^ np.where(long, np.uint32(0xFFFFFFFF), np.uint32(0))


@functools.cache
def _table() -> np.ndarray:
    """What a byte makes of the remainder: by the polynomial 0x1EDC6F41, its bits in reverse."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, np.uint32(0x82F63B78), np.uint32(0)) ^ (crc >> np.uint32(1))
    return crc


@functools.cache
def _chunk_tables(chunk: int) -> np.ndarray:
    """What a chunk of zeros makes of the remainder, for each of its four bytes by itself: (4, 256)."""
    crc = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for _ in range(chunk):
        crc = _table()[crc & 0xFF] ^ (crc >> np.uint32(8))
    return crc


def _past_a_chunk(chunk: int, crc: np.ndarray) -> np.ndarray:
    tables = _chunk_tables(chunk)
    one, two, three, four = (tables[i][(crc >> np.uint32(8 * i)) & 0xFF] for i in range(4))
    return one ^ two ^ three ^ four


def _short(message: bytes) -> int:
    table, crc = _table().tolist(), 0xFFFFFFFF
    for byte in message:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return int(crc) ^ 0xFFFFFFFF
