"""The whole contract: the kits of megacontext_sdk, and a session that comes back."""

from acme_memory.store import AcmeStorage

from megacontext_sdk import MemorySession
from megacontext_sdk.testing import PluginConformance, StorageConformance


class TestAcmePlugin(PluginConformance):
    plugin = "acme"


class TestAcmeStorage(StorageConformance):
    make = staticmethod(lambda folder: AcmeStorage(folder / "data-000001"))


def test_a_session_keeps_its_memory_in_it(tmp_path):
    with MemorySession.open(tmp_path / "alice.mc", model="echo", storage="acme") as session:
        session.append("The harbour master keeps a red boat.")
        session.append("Nothing of note today. " * 40)
    with MemorySession.open(tmp_path / "alice.mc", model="echo", storage="acme") as session:
        (hit, *_) = session.search("Who keeps a red boat?")
        assert "The harbour master keeps a red boat." == hit.text
        assert session.generate("And now?", max_new_tokens=5).text
