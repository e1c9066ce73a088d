"""Which federation a device belongs to, and what taking part has cost: read off its folder alone.

The process that runs the device isn't asked: what works out an ε takes more memory than all that it has
to keep resident.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common.code_version import code_version
from ..common.errors import ConfigError, LedgerError
from ..common.server_bundle import ServerBundle
from .device_folder import DeviceFolder
from .diary import Diary

if TYPE_CHECKING:
    from .lifetime import Terms


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The server that a device has joined, as far as its folder knows.

    Attributes:
        federation: its name.
        address: host:port.
        signing_key: hex, that its tasks and models must be signed with; tells servers apart.
        ca_sha256: hex, of the certificate of the one authority that is trusted for it.
        key: whether the device has a key to be enrolled by.
        rounds_today: begun since midnight, UTC.
        rounds_per_day: that the owner allows.
        broken_off: times that the server broke off a reply.
    """

    federation: str
    address: str
    signing_key: str
    ca_sha256: str
    key: bool
    rounds_today: int
    rounds_per_day: int
    broken_off: int


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """What a device has spent of what its owner allows, over all runs and models.

    Attributes:
        epsilon: spent; None where it can't be told.
        allowed: ε that the owner allows.
        delta: δ of both.
        releases: charged, answered or not.
        problem: why nothing can be charged any more; None where nothing is in the way.
    """

    epsilon: float | None
    allowed: float
    delta: float
    releases: int
    problem: str | None = None


def read_membership(folder: DeviceFolder) -> Membership | None:
    """The server that the device has joined; None: none.

    Raises:
        ConfigError: what the server's bundle left can't be used.
    """
    if not folder.server_facts.exists():
        return None
    bundle = ServerBundle.load(folder.server)
    diary = Diary.read(folder.diary)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return Membership(
        federation=bundle.facts.federation,
        address=bundle.facts.address,
        signing_key=bundle.facts.signing_key,
        ca_sha256=bundle.ca_sha256,
        key=folder.node_key.exists(),
        rounds_today=diary.rounds if diary.day == today else 0,
        rounds_per_day=folder.config.policy.rounds_per_day,
        broken_off=diary.broken,
    )


def read_lifetime(folder: DeviceFolder) -> Lifetime | None:
    """What taking part has cost; None where the device has joined no server.

    Raises:
        ConfigError: what the server's bundle left can't be used.
    """
    if not folder.server_facts.exists():
        return None
    bundle, policy = ServerBundle.load(folder.server), folder.config.policy
    epsilon: float | None = 0.0
    releases, problem = 0, None
    if folder.ledger.exists():
        from .lifetime import read_spent  # slow to load, and not needed before the first round

        try:
            epsilon, releases = read_spent(folder.ledger, terms=terms_of(folder, bundle))
        except (LedgerError, ConfigError) as error:
            epsilon, problem = None, str(error)
    return Lifetime(
        epsilon=epsilon,
        allowed=policy.lifetime_epsilon,
        delta=policy.lifetime_delta,
        releases=releases,
        problem=problem,
    )


def terms_of(folder: DeviceFolder, bundle: ServerBundle) -> Terms:
    """What the device's ledger is kept on, for the federation of ``bundle``."""
    from .lifetime import Terms

    policy = folder.config.policy
    return Terms(
        population=bundle.facts.federation,
        target_epsilon=policy.lifetime_epsilon,
        delta=policy.lifetime_delta,
        randomness="csprng",
        code_version=code_version(),
        config_digest=hashlib.sha256(policy.model_dump_json().encode()).hexdigest(),
    )
