"""Records check themselves when they are made, and say what to write instead."""

from __future__ import annotations

import attrs
import pytest

from megacontext_sdk.catalogue import KINDS
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.records import ModelAdapterSpec, RuntimeSpec, StorageSpec

RECORDS = [kind.record for kind in KINDS.values()]


@pytest.mark.parametrize("record", RECORDS)
def test_every_record_has_name_factory_summary_and_requires(record):
    made = record("acme-2", "acme.store:Outer.inner", "One line", requires="acme")
    assert ("acme-2", "acme.store:Outer.inner", "One line", "acme") == (
        made.name,
        made.factory,
        made.summary,
        made.requires,
    )


@pytest.mark.parametrize("record", RECORDS)
def test_records_are_frozen_and_comparable(record):
    made = record("acme", "acme:Acme", "One line")
    assert made == record("acme", "acme:Acme", "One line")
    assert hash(made) == hash(record("acme", "acme:Acme", "One line"))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.name = "other"


@pytest.mark.parametrize("name", ["", "Acme", "2acme", "acme_cloud", "acme cloud", None, 7])
def test_a_name_that_is_no_provider_name_is_refused(name):
    with pytest.raises(ConfigError, match="use lower-case letters, digits and hyphens") as caught:
        StorageSpec(name, "acme:Acme", "One line")
    assert ("name", name) == (caught.value.field, caught.value.value)


@pytest.mark.parametrize("factory", ["acme", "acme:", ":Acme", "acme.Acme", "a b:C", None, 7])
def test_a_factory_that_is_neither_import_string_nor_callable_is_refused(factory):
    with pytest.raises(ConfigError, match='"package.module:Class", or a callable') as caught:
        StorageSpec("acme", factory, "One line")
    assert "factory" == caught.value.field


def test_a_callable_is_a_factory():
    assert dict is StorageSpec("acme", dict, "One line").factory


@pytest.mark.parametrize("summary", ["", "  ", "two\nlines", None])
def test_a_summary_that_is_not_one_line_is_refused(summary):
    with pytest.raises(ConfigError, match="needs a summary of one line"):
        StorageSpec("acme", "acme:Acme", summary)


def test_a_probe_is_checked_like_a_factory():
    with pytest.raises(ConfigError, match="has the probe 'acme.probe'"):
        RuntimeSpec("acme", "acme:Loop", "One line", probe="acme.probe")


def test_options_of_a_model_are_copied_and_read_only():
    options = {"device": "cpu"}
    record = ModelAdapterSpec("acme", "acme:open", "One line", options=options)
    options["device"] = "cuda"
    assert "cpu" == record.options["device"]
    with pytest.raises(TypeError):
        record.options["device"] = "cuda"
