"""Ten thousand bundles that were tampered with: a typed error, or a memory that can be used.

The generator is seeded, so a failure repeats. Half of the cases come from somebody who can make a
digest and a chain, so that every check behind them is reached.
"""

import random
from collections import Counter

import attrs
import msgspec
import numpy as np
import pytest

from megacontext_sdk.errors import BundleError, FormatVersionError
from megacontext_sdk.memory.bundle import write_bundle
from megacontext_sdk.memory.loading import Loader, open_source

N_CASES = 10_000
N_SHARDS = 4
ODD = (
    *(0, 1, -1, 2, 31, 32, 255, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**53),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 88, 0.5, 1.0, None, True, "", "x", "0" * 32, []),
    *({}, "commits", "gist_rows", "bodies", "tail"),
)


class Vandal:
    """Makes bad bundles of a good one.

    Args:
        kit: of this folder.
        raw: bytes of the good one.
        seed: of the choices.
    """

    def __init__(self, kit, raw, seed):
        self.sealed, self.linked = kit.resealed, kit.relinked
        self.raw = raw
        self.header, self.parts = kit.opened_up(raw)
        self.random = random.Random(seed)

    def case(self):
        """Return the bytes of one bad bundle."""
        makers = {
            lambda: self.damaged(self.raw): 8,
            lambda: self.raw[: self.random.randrange(len(self.raw))]: 4,
            lambda: self.sealed(*self.linked(self.header, self.damaged(self.parts))): 40,
            lambda: self.sealed(self.header, self.damaged(self.parts)): 12,
            lambda: self.sealed(self.edited(), self.parts): 28,
            lambda: self.sealed(self.damaged(self.header), self.parts): 4,
            lambda: self.sealed(self.edited(), self.parts + bytes(self.random.randrange(3))): 4,
        }
        return self.random.choices([*makers], weights=makers.values())[0]()

    def damaged(self, raw):
        """Return bytes with flips, runs of zeros and ones, and pieces copied elsewhere."""
        changed = bytearray(raw)
        for _ in range(self.random.choice([1, 1, 1, 2, 8])):
            at, width = (
                self.random.randrange(len(changed)),
                self.random.choice([1, 2, 4, 8, 24, 88]),
            )
            width = min(width, len(changed) - at)
            kind = self.random.randrange(5)
            if kind == 0:
                changed[at] ^= 1 << self.random.randrange(8)
            elif kind == 1:
                changed[at : at + width] = bytes(width)
            elif kind == 2:
                changed[at : at + width] = b"\xff" * width
            elif kind == 3:
                other = self.random.randrange(len(changed) - width)
                changed[at : at + width] = changed[other : other + width]
            else:
                changed[at] = self.random.randrange(256)
        return bytes(changed)

    def edited(self):
        """Return a header with numbers, keys and parts that it should not have."""
        said = msgspec.json.decode(self.header)
        for _ in range(self.random.choice([1, 1, 2, 3])):
            parts = said["parts"]
            if self.random.random() < 0.2:
                at = self.random.randrange(len(parts))
                parts[at:at] = [parts[0] | {}, self.random.choice(parts) | {}, {}][: at % 3]
                continue
            place = said if self.random.random() < 0.4 else self.random.choice(parts)
            self.edit(place, {"parts"} if place is said else set())
        return msgspec.json.encode(said)

    def edit(self, place, spared):
        """Change one value of a map, or take it away."""
        keys = sorted(set(place) - spared)
        if not keys:
            return
        key, kind = self.random.choice(keys), self.random.randrange(7)
        if kind < 4:
            place[key] = self.random.choice(ODD)
        elif kind < 6 and isinstance(place[key], int):
            place[key] += self.random.choice([-88, -1, 1, 4, 32, 88])
        else:
            del place[key]


@pytest.mark.parametrize("seed", range(N_SHARDS))
def test_tampered_bundles_are_refused_with_a_typed_error_or_harmless(tmp_path, kit, seed):
    meta = kit.meta()
    write_bundle(kit.fill(kit.store(meta), meta, 3), meta, tmp_path / "bundle")
    vandal = Vandal(kit, (tmp_path / "bundle").read_bytes(), seed)
    outcomes = Counter(_outcome(tmp_path, kit, vandal) for _ in range(N_CASES // N_SHARDS))
    assert N_CASES // N_SHARDS == outcomes.total()
    assert ["bundle"] == [entry.name for entry in tmp_path.iterdir()]
    # The generator reaches what lies behind the digest, the header and the chain.
    assert outcomes["BundleError"] > outcomes.total() // 2
    assert outcomes["loaded"] > outcomes.total() // 50


def _outcome(tmp_path, kit, vandal):
    (tmp_path / "bundle").write_bytes(vandal.case())
    trust = vandal.random.choice(["cap", "keep"])
    try:
        with open_source(tmp_path / "bundle", None) as origin:
            # Whatever tokenizer the header names is taken for ours: that would be no damage.
            prints = attrs.evolve(kit.prints, tokenizer=origin.fingerprints.tokenizer)
            loader = Loader(
                origin,
                backend="memory",
                fingerprints=prints,
                vocab_size=kit.vocab_size,
                width=kit.width,
                trust=trust,
            )
            loader.check()
            store = kit.store(loader.meta)
            loader.fill(store)
    except (BundleError, FormatVersionError) as error:
        return type(error).__name__
    assert np.array_equal(store.read_commits(1, 2)["seq"], [1])
    return "loaded"
