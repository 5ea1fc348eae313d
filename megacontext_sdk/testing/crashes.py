"""Crash conformance of a `Storage` inside a whole memory: kills, failing disks, damage, races.

Subclass `CrashConformance` and name the class by an import string, because it dies in processes of
its own. What the contract says call by call is `StorageConformance`'s.
"""

from __future__ import annotations

from megacontext_sdk.testing.damage_cases import DamageCases
from megacontext_sdk.testing.disk_cases import DiskCases
from megacontext_sdk.testing.kill_cases import KillCases
from megacontext_sdk.testing.machine_cases import MachineCases
from megacontext_sdk.testing.power_cases import PowerCases
from megacontext_sdk.testing.race_cases import RaceCases
from megacontext_sdk.testing.session_kills import SessionKills

__all__ = ["CrashConformance"]


class CrashConformance(
    KillCases, SessionKills, DiskCases, PowerCases, DamageCases, RaceCases, MachineCases
):
    """What a memory on this storage survives.

    A store whose `capabilities.durability` is empty skips all of it.

    Example:
        >>> class TestAcmeCrashes(CrashConformance):
        ...     storage = "acme_memory.store:AcmeStorage"
    """
