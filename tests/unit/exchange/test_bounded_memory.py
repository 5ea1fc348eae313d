"""Large and hostile files in little memory, measured in processes of their own."""

import pytest

MIB = 2**20

# A store of any size that holds nothing: rows follow from their numbers.
ENDLESS = """
import sys
from pathlib import Path
import numpy as np
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import COMMIT, MESSAGE, GistRows, StoreState
from megacontext_sdk.memory.exchange.bundle import write_bundle
from megacontext_sdk.memory.chain import link
from megacontext_sdk.memory.exchange.loading import Loader, open_source
from megacontext_sdk.memory.directory.manifest import MemoryMeta
from megacontext_sdk.memory.directory.opened import Fingerprints
from megacontext_sdk.messages import MessageBody, encode_body

PER, WIDTH = 64, 8  # tokens of a message, numbers of a gist


def peak():
    # Not ru_maxrss: that survives exec, so it would tell how large the parent was.
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) // 1024


class Endless(InMemoryStorage):
    def __init__(self, body_bytes):
        super().__init__(Path("endless"))
        self.sizes = body_bytes
        self.open("read", None)

    def body(self, number):
        return encode_body(MessageBody(text=chr(97 + number % 26) * int(self.sizes[number])))

    def chains(self):
        chain, out = bytes(16), []
        for number in range(len(self.sizes)):
            row = self.rows(number, number + 1)
            packed = self.read_messages(number, number + 1).tobytes()
            ids = np.zeros(PER, np.int32)
            chain = link(chain, row.tobytes()[:72], ids, packed, [self.body(number)])
            out.append(chain)
        return np.frombuffer(b"".join(out), "V16")

    def rows(self, start, stop):
        numbers = np.arange(start, stop)
        rows = np.zeros(stop - start, COMMIT)
        rows["seq"], rows["start"], rows["first_message"] = numbers + 1, numbers * PER, numbers
        rows["setting"], rows["n_tokens"], rows["n_messages"] = 2**64 - 1, PER, 1
        return rows

    def state(self):
        n = len(self.sizes)
        levels = tuple(
            (0, lod, n * PER // 32**lod) for lod in (1, 2, 3) if n * PER // 32**lod
        )
        return StoreState(
            seq=n, chain=self.links[-1].tobytes(), n_tokens=n * PER, n_blocks=n * PER // 32,
            n_messages=n, tail=b"", setting=2**64 - 1, gist_rows=levels,
        )

    def read_commits(self, start, stop):
        rows = self.rows(start - 1, stop - 1)
        rows["chain"] = self.links[start - 1 : stop - 1]
        return rows

    def read_blocks(self, blocks):
        return np.zeros((len(blocks), 64), np.uint8)

    def read_messages(self, start, stop):
        rows = np.zeros(stop - start, MESSAGE)
        rows["start"], rows["n_tokens"], rows["trust"] = np.arange(start, stop) * PER, PER, 3
        return rows

    def read_bodies(self, messages):
        return [self.body(number) for number in messages.tolist()]

    def read_gists(self, version, lod, nodes):
        rows = np.zeros((len(nodes), 2 * WIDTH), np.uint8)
        return GistRows(rows=rows, trust=np.ones(len(nodes), np.uint8),
                        present=np.ones(len(nodes), bool))


class Sieve:
    n_bytes = 0

    def commit(self, batch, *, sync=True):
        self.n_bytes += sum(map(len, batch.bodies))

    def put_gists(self, batch):
        pass


meta = MemoryMeta(uuid="0" * 32, root=bytes(16), backend="endless", generation=1, token_bytes=2,
                  base_fp="a", tokenizer_fp="b")


def write(path, sizes):
    store = Endless(np.asarray(sizes))
    store.links = store.chains()
    before = peak()
    write_bundle(store, meta, path)
    return peak() - before


def load(path):
    before, target = peak(), Sieve()
    with open_source(path, None) as origin:
        loader = Loader(origin, backend="sieve", fingerprints=Fingerprints("a", "b"),
                        vocab_size=100, width=WIDTH)
        loader.check()
        loader.fill(target)
    return peak() - before, target.n_bytes
"""


def test_a_large_memory_streams_out_and_in_through_little_memory(tmp_path, in_child):
    code = f"{ENDLESS}\nsizes = [6_000] * 20_000\npath = Path(sys.argv[1])\n"
    grown = int(in_child(code + "print(write(path, sizes))", tmp_path / "a.bundle"))
    assert (tmp_path / "a.bundle").stat().st_size > 110 * MIB
    assert grown < 64
    grown, n_bytes = map(int, in_child(code + "print(*load(path))", tmp_path / "a.bundle").split())
    assert n_bytes > 110 * MIB
    assert grown < 64


def test_small_bodies_and_then_large_ones_do_not_add_up_in_memory(tmp_path, in_child):
    code = f"{ENDLESS}\nsizes = [1] * 6_000 + [15 * 2**20] * 12\npath = Path(sys.argv[1])\n"
    in_child(code + "write(path, sizes)", tmp_path / "a.bundle")
    grown, n_bytes = map(int, in_child(code + "print(*load(path))", tmp_path / "a.bundle").split())
    assert n_bytes > 180 * MIB
    assert grown < 120


REFUSED = """
import sys
from hashlib import blake2b
from pathlib import Path
from megacontext_sdk.errors import BundleError
from megacontext_sdk.memory.exchange.bundle_check import check_bundle
from megacontext_sdk.memory.exchange.bundle_reader import open_bundle

header = eval(sys.argv[2])
raw = b"MCBUNDLE" + len(header).to_bytes(4, "little") + header
Path(sys.argv[1]).write_bytes(raw + blake2b(raw, digest_size=32).digest())
try:
    open_bundle(Path(sys.argv[1]))
except BundleError as error:
    # Not ru_maxrss: that survives exec, so it would tell how large the parent was.
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    print(error.part, int(status.split()[0]) // 1024)
"""

PART = (
    'b\'{"kind":"tail","version":0,"lod":0,"first":0,"rows":1,"stride":2,"offset":0,"length":2}\''
)
FRONT = (
    'b\'{"format":[1,0],"uuid":"0","root":"0","block_size":32,"token_bytes":2,"base_fp":"a",'
    '"tokenizer_fp":"b","parent":null,"seq":0,"chain":"0","n_tokens":0,"n_messages":0,"parts":[\''
)


@pytest.mark.parametrize(
    "header",
    [
        f"{FRONT} + b','.join([{PART}] * 65_536) + b']}}'",
        f"{FRONT} + b'[],' * 5_000_000 + b'[]]}}'",
        f"{FRONT} + b'0,' * 8_000_000 + b'0]}}'",
        "b'{\"format\":[1,0],\"uuid\":\"' + b'0' * 16_000_000 + b'\"}'",
        "b'{\"format\":[1,0],\"x\":[' + b'[],' * 5_000_000 + b'[]]}'",
        "b'{\"format\":[' + b'1,' * 8_000_000 + b'0]}'",
        "b'{' * 16_000_000",
        "b'[' * 16_000_000",
        'b\'{"format":[1,0],"parts":[\' * 500_000',
    ],
)
def test_row11_no_header_takes_more_memory_than_it_is_worth(tmp_path, in_child, header):
    part, peak_mib = in_child(REFUSED, tmp_path / "bad", header).split()
    assert "header" == part
    assert int(peak_mib) < 256
