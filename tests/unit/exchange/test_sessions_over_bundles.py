"""What a session makes of bundles: the same answers as before, whatever was tampered with."""

import pytest

from megacontext_sdk import MemorySession
from megacontext_sdk.errors import BundleError, MegaContextError

OPTIONS = {"model": "echo", "storage": "memory"}
N_CASES = 50


@pytest.fixture
def exported(tmp_path):
    with MemorySession.open(None, **OPTIONS) as session:
        for number in range(12):
            session.append(
                f"The colour of house {number} is {number * 7919 % 97}.",
                metadata={"number": number},
                source="mail",
            )
        session.generate("And the last one?", max_new_tokens=40)
        session.focus.pin((0, 64))
        session.snapshot("told")
        session.export(tmp_path / "good.bundle")
    return tmp_path / "good.bundle"


def use(session, path):
    """Call whatever reads what a bundle brought."""
    list(map(str, session.snapshots()))
    [message.to_dict() for message in session.messages()]
    session.search("house 3")
    session.append("One more thing.")
    session.generate("And then?", max_new_tokens=8)
    session.forget(where={"source": "mail"})
    session.export(path)


def test_a_session_over_a_bundle_goes_on(exported, tmp_path):
    with MemorySession.load(exported, into=None, trust="keep", **OPTIONS) as session:
        assert ["told"] == [one.name for one in session.snapshots()]
        assert "house 7" in session.search("house 7")[0].text
        use(session, tmp_path / "again.bundle")
    with MemorySession.load(tmp_path / "again.bundle", into=None, **OPTIONS) as session:
        assert not [m for m in session.messages() if "The colour" in m.text]
        assert {1} == {int(message.trust) for message in session.messages()}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers of a gist that nobody would write
@pytest.mark.parametrize("trust", [None, "keep"])
def test_a_tampered_bundle_gives_typed_errors_or_a_session_that_works(
    exported, tmp_path, kit, trust
):
    vandal = kit.vandal(exported.read_bytes(), seed=7)
    n_used = 0
    for number in range(N_CASES):
        parts = vandal.damaged(vandal.parts)
        exported.write_bytes(kit.resealed(*kit.relinked(vandal.header, parts)))
        try:
            with MemorySession.load(exported, into=None, trust=trust, **OPTIONS) as session:
                use(session, tmp_path / f"{number}.bundle")
                n_used += 1
        except BundleError:
            continue
        except MegaContextError:
            # Only who asked to believe everything may meet settings that make no sense.
            assert "keep" == trust
    assert n_used > N_CASES // 10
