import numpy as np
import pytest

from ntkit.data._tfrecord import CHUNK, crc32c


def test_checksums_of_the_standard() -> None:
    # RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    messages = [bytes(32), b"\xff" * 32, bytes(range(32)), bytes(range(31, -1, -1)), b"123456789", b""]
    found = crc32c(messages).tolist()
    assert found == [0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0x113FDB5C, 0xE3069283, 0]


def by_bits(message: bytes) -> int:
    """CRC-32C, bit by bit from its definition (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in message:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("longest", [8, 3 * CHUNK + 5])
def test_checksums_of_any_length_together(longest: int) -> None:
    rng = np.random.default_rng(0)
    lengths = {*range(9), CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5} & {*range(longest + 1)}
    messages = [rng.bytes(length) for length in sorted(lengths)]

    assert crc32c(messages).tolist() == [by_bits(message) for message in messages]
