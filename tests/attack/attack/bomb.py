"""A gzip file of one MiB that unpacks to one GiB of zeros."""

import zlib

MEBI = 1 << 20
UNPACKED = 1 << 30


def bomb() -> bytes:
    """It is put together from equal blocks, which takes a moment instead of many seconds."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(MEBI)
    # Behind a full flush a block refers to nothing before it, so it can be repeated.
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(UNPACKED // MEBI):
        checksum = zlib.crc32(zeros, checksum)
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    tail = checksum.to_bytes(4, "little") + (UNPACKED % (1 << 32)).to_bytes(4, "little")
    made = head + block * (UNPACKED // MEBI) + packer.flush(zlib.Z_FINISH) + tail
    assert MEBI // 2 < len(made) < 2 * MEBI, f"the bomb has {len(made)} bytes"
    return made


def unpacks_to(packed: bytes) -> int:
    """The number of bytes that a reader without bounds would get."""
    unpacker, count = zlib.decompressobj(31), 0
    while packed and not unpacker.eof:
        count += len(unpacker.decompress(packed, MEBI))
        packed = unpacker.unconsumed_tail
    return count
