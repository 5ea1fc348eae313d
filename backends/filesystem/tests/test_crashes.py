"""Memories on plain files survive what the crash kit does to them."""

import pytest

from megacontext_sdk.testing import CrashConformance


@pytest.mark.slow
class TestFilesystemCrashes(CrashConformance):
    storage = "megacontext_filesystem.store:FilesystemStorage"
    takes_disk = True
    log_glob = "data-*/log-*.mcl"
    finds_damage_behind_head = True
    n_flips = 1_500
    n_damages = 400
