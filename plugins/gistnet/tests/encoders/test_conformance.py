"""Both encoders pass the kit of the contract, with every number of slots."""

from __future__ import annotations

import pytest

from megacontext_gistnet.encoder import open_gistnet
from megacontext_sdk.testing.gist import GistEncoderConformance


class FromLab(GistEncoderConformance):
    """The kit over the tiny model."""

    is_bitwise = False
    kind = ""
    slots = 1

    @pytest.fixture(autouse=True)
    def _lab(self, lab):
        type(self).make = staticmethod(lambda: lab.open(self.kind, self.slots))
        type(self).make_services = staticmethod(lambda: lab.adapter)


class TestContextual(FromLab):
    kind = "contextual"


class TestContextualS4(FromLab):
    kind, slots = "contextual", 4


class TestGistNet(FromLab):
    kind = "gistnet"


class TestGistNetS2(FromLab):
    kind, slots = "gistnet", 2


class TestGistNetWithoutATorchModel(GistEncoderConformance):
    """A gistnet needs an embedding table and nothing else of its base."""

    is_bitwise = False

    @pytest.fixture(autouse=True)
    def _weights(self, table_weights):
        type(self).make = staticmethod(lambda: open_gistnet(str(table_weights)))
