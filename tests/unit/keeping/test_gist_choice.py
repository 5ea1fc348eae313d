"""Which encoder a memory gets: asked for, its own, trained for the model, or `mean`."""

from __future__ import annotations

import hashlib

import pytest

from megacontext_sdk import GistEncoderSpec, MemorySession, ModelAdapterSpec, errors, hookimpl
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder, open_mean
from megacontext_sdk.plugins import Plugins

TEXT = "The harbour master keeps a red boat. " * 10


class Trained(MeanGistEncoder):
    """Gists of another size; refuses bases it was not trained for."""

    name = "trained"

    def __init__(self, argument, gist_slots, base=""):
        super().__init__(gist_slots)
        self.argument, self.base = argument, base

    def fingerprint(self, info):
        if self.base and self.base != info.fingerprint:
            raise errors.ModelMismatchError("another base", kind="base", stored="", given="")
        return hashlib.sha256(f"{self.argument} {self.gist_slots}".encode()).hexdigest()


class Lab:
    """A plugin with a model, its encoder and an encoder of another name."""

    def __init__(self, gist="trained:yes", **options):
        self.gist, self.options = gist, options

    @hookimpl
    def megacontext_model_adapters(self):
        yield ModelAdapterSpec(
            "lab", lambda _argument: EchoModel("lab"), "Echo with an encoder", gist=self.gist
        )

    @hookimpl
    def megacontext_gist_encoders(self):
        yield GistEncoderSpec("trained", Trained, "For tests", options=self.options)
        yield GistEncoderSpec("gone", "no_such_module:Encoder", "Not there", requires="gone")


@pytest.fixture
def open_lab(tmp_path):
    """Return what opens the same memory with a plugin of these arguments."""

    def open_it(lab=None, **given):
        plugins = Plugins.load(plugins=("duckdb",), modules=[lab or Lab()])
        arguments = {"model": "lab", "plugins": plugins, **given}
        return MemorySession.open(tmp_path / "lab.mc", **arguments)

    return open_it


def test_a_new_memory_takes_the_encoder_trained_for_its_model(open_lab):
    with open_lab() as session:
        session.append(TEXT)
        assert "trained:yes" == session.stats().gist
        assert ["mean", "trained"] == [
            entry["name"] for entry in session._parts.journal.settings["encoders"]
        ]


def test_the_memory_opens_with_it_again_even_if_the_default_has_changed(open_lab):
    with open_lab() as session:
        session.append(TEXT)
    with open_lab(Lab(gist="")) as session:
        assert "trained:yes" == session.stats().gist
        assert 0 == session.stats().gists_rebuilt


def test_a_memory_of_mean_gists_keeps_them(open_lab):
    with open_lab(Lab(gist="")) as session:
        session.append(TEXT)
    with open_lab() as session:
        assert "mean" == session.stats().gist
        assert 0 == session.stats().gists_rebuilt


def test_asking_for_mean_is_remembered_too(open_lab):
    with open_lab(gist="mean") as session:
        session.append(TEXT)
    with open_lab() as session:
        assert "mean" == session.stats().gist


def test_an_encoder_asked_for_wins_and_is_remembered_with_its_argument(open_lab):
    with open_lab(gist="trained:a/b:c") as session:
        session.append(TEXT)
        assert "trained:a/b:c" == session.stats().gist
    with open_lab() as session:
        assert "trained:a/b:c" == session.stats().gist


def test_asking_for_another_later_serves_this_session_only(open_lab):
    with open_lab() as session:
        session.append(TEXT)
    with open_lab(gist="mean") as session:
        assert "mean" == session.stats().gist
    with open_lab() as session:
        assert "trained:yes" == session.stats().gist


def test_rebuild_chooses_for_good(open_lab):
    with open_lab(gist="mean") as session:
        session.append(TEXT)
        made = session.rebuild(gist="trained:now")
        assert ("trained", session.stats().nodes[1]) == (made.gist, made.encoded)
    with open_lab() as session:
        assert "trained:now" == session.stats().gist
        assert 0 == session.stats().gists_rebuilt


def test_a_model_given_as_an_object_has_its_encoder_by_its_name(open_lab):
    with EchoModel("lab") as model, open_lab(model=model) as session:
        assert "trained:yes" == session.stats().gist
    with EchoModel("other") as model, open_lab(model=model) as session:
        assert "trained:yes" == session.stats().gist, "by now the memory's own"


@pytest.mark.parametrize("gist", ["gone", "nothing:at all"])
def test_an_encoder_that_is_not_installed_gives_way_to_mean(open_lab, gist, caplog):
    with open_lab(Lab(gist=gist)) as session:
        session.append(TEXT)
        assert "mean" == session.stats().gist
    assert "" == caplog.text, "whoever did not ask for it need not miss it"


def test_an_encoder_for_other_weights_gives_way_to_mean_and_says_so(open_lab, caplog):
    with open_lab(Lab(base="f" * 64)) as session:
        session.append(TEXT)
        assert "mean" == session.stats().gist
    assert "cannot be used: another base" in caplog.text


def test_one_asked_for_that_does_not_fit_is_refused(open_lab):
    with pytest.raises(errors.ModelMismatchError):
        open_lab(Lab(base="f" * 64), gist="trained:x")


@pytest.mark.parametrize("gist", ["gone:x", "gone"])
def test_one_asked_for_that_is_not_installed_is_refused(open_lab, gist):
    with pytest.raises(errors.PluginLoadError, match="pip install gone"):
        open_lab(gist=gist)


def test_a_reader_changes_nothing(open_lab):
    with open_lab(Lab(gist="")):
        pass
    with open_lab(read_only=True) as session:
        assert "mean" == session.stats().gist


def test_mean_takes_no_argument(open_lab):
    assert 2 == open_mean(gist_slots=2).gist_slots
    with pytest.raises(errors.ConfigError, match='say gist="mean"'):
        open_lab(gist="mean:fast")


def test_a_fork_has_the_encoder_of_its_origin(open_lab, tmp_path):
    with open_lab() as session:
        session.append(TEXT)
        with session.fork(tmp_path / "fork.mc") as fork:
            assert "trained:yes" == fork.stats().gist
