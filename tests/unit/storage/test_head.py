"""HEAD: two slots, golden bytes, damage."""

import os
import struct
from zlib import crc32

import pytest

from megacontext_sdk.errors import ConfigError, CorruptError
from megacontext_sdk.memory.directory.head import SLOT_BYTES, Head, HeadFile, pack_slot, unpack_slot

CHAIN = bytes(range(16))
GOLDEN = (
    "4d434844"  # magic MCHD
    "01000000"  # version
    "0300000000000000"  # generation
    "4803000000000000"  # seq 840
    "000102030405060708090a0b0c0d0e0f"  # chain
)


@pytest.fixture
def head(tmp_path):
    HeadFile.create(tmp_path / "HEAD", Head(1, 0, CHAIN))
    return tmp_path / "HEAD"


def reopened(path, generation=1):
    file = HeadFile(path, generation)
    try:
        return file.open(writable=False)
    finally:
        file.close()


def test_row08_head_slot_has_its_golden_bytes():
    slot = pack_slot(Head(3, 840, CHAIN))
    assert SLOT_BYTES == len(slot) == 512
    assert GOLDEN == slot[:40].hex()
    assert not any(slot[40:508])
    assert struct.pack("<I", crc32(slot[:508])) == slot[508:]
    assert Head(3, 840, CHAIN) == unpack_slot(slot)


@pytest.mark.parametrize("at", [0, 4, 8, 16, 24, 39, 100, 507, 508, 511])
def test_row08_any_changed_byte_makes_a_slot_invalid(at):
    slot = bytearray(pack_slot(Head(3, 840, CHAIN)))
    slot[at] ^= 1
    assert unpack_slot(bytes(slot)) is None


@pytest.mark.parametrize(("offset", "value"), [(0, b"XXXX"), (4, b"\x02\0\0\0")])
def test_row08_wrong_magic_or_version_with_a_valid_checksum_is_rejected(offset, value):
    slot = bytearray(pack_slot(Head(3, 840, CHAIN)))
    slot[offset : offset + 4] = value
    slot[508:] = struct.pack("<I", crc32(slot[:508]))
    assert unpack_slot(bytes(slot)) is None


def test_writes_alternate_between_the_slots(head):
    file = HeadFile(head, 1)
    file.open(writable=True)
    for seq in range(1, 6):
        file.write(seq, CHAIN)
        data = head.read_bytes()
        slots = {unpack_slot(data[:512]).seq, unpack_slot(data[512:]).seq}
        assert {seq, seq - 1} == slots
    file.sync()
    file.close()
    assert Head(1, 5, CHAIN) == reopened(head)


def test_a_torn_slot_leaves_the_one_before(head):
    file = HeadFile(head, 1)
    file.open(writable=True)
    for seq in (1, 2):
        file.write(seq, CHAIN)
    file.close()
    data = bytearray(head.read_bytes())
    newest = 0 if unpack_slot(bytes(data[:512])).seq == 2 else 1
    data[512 * newest + 300] ^= 0xFF
    head.write_bytes(data)
    assert 1 == reopened(head).seq
    file = HeadFile(head, 1)
    file.open(writable=True)
    file.write(3, CHAIN)  # goes over the damaged slot
    file.close()
    assert 3 == reopened(head).seq


@pytest.mark.parametrize("content", [b"", b"\0" * 1024, b"x" * 1024, b"MCHD"])
def test_two_damaged_slots_are_corrupt(head, content):
    head.write_bytes(content)
    with pytest.raises(CorruptError) as caught:
        reopened(head)
    assert "HEAD" == caught.value.where


def test_missing_head_is_corrupt_never_a_new_memory(head):
    head.unlink()
    with pytest.raises(CorruptError, match="missing"):
        reopened(head)


def test_slots_of_another_generation_do_not_count(head):
    with pytest.raises(CorruptError):
        reopened(head, generation=2)
    data = pack_slot(Head(1, 7, CHAIN)) + pack_slot(Head(2, 9, CHAIN))
    head.write_bytes(data)
    assert (7, 9) == (reopened(head, 1).seq, reopened(head, 2).seq)


def test_create_never_overwrites(head):
    with pytest.raises(FileExistsError):
        HeadFile.create(head, Head(1, 0, CHAIN))


def test_head_is_private_and_never_a_link(head, tmp_path):
    assert 0o600 == head.stat().st_mode & 0o777
    target = tmp_path / "elsewhere"
    head.rename(target)
    head.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        reopened(head)
    head.unlink()
    os.mkfifo(head)
    with pytest.raises(ConfigError, match="regular file"):
        reopened(head)
