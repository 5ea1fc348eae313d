"""Ten thousand bundles that were tampered with: a typed error, or a memory that can be used.

The generator is seeded, so a failure repeats. Half of the cases come from somebody who can make a
digest and a chain, so that every check behind them is reached.
"""

from collections import Counter

import attrs
import numpy as np
import pytest

from megacontext_sdk.errors import BundleError, FormatVersionError
from megacontext_sdk.memory.exchange.bundle import write_bundle
from megacontext_sdk.memory.exchange.loading import Loader, open_source

N_CASES = 10_000
N_SHARDS = 4


@pytest.mark.parametrize("seed", range(N_SHARDS))
def test_tampered_bundles_are_refused_with_a_typed_error_or_harmless(tmp_path, kit, seed):
    meta = kit.meta()
    write_bundle(kit.fill(kit.store(meta), meta, 3), meta, tmp_path / "bundle")
    vandal = kit.vandal((tmp_path / "bundle").read_bytes(), seed)
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
