"""The report of an audit as one JSON-ready document, from which the page is drawn.

Every figure comes from :mod:`~.verify`, :mod:`~.forecast` and the results that probes and canaries kept;
here they are put in order and told in words.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.code_version import code_version
from ..common.errors import ConfigError, LedgerError, RunFolderError
from ..common.files import write_atomically
from ..common.ledger_entries import Chain
from ..common.strength import strength
from .device_checks import Device
from .devices import USER, describe_device, summarise
from .findings import Finding
from .forecast import forecast
from .hazards import hazards
from .ledgers import SERVER, Evidence
from .measurements import Measurement, find_results, read_canaries, read_probes
from .privacy_checks import releases_of
from .report_page import render
from .spending import group_releases, spent_along
from .statements import ASKED, Scope, cautions, faults_of, guarantee, objection, verdict
from .verify import Verification, verify

_MORE = (1, 10, 100)
"""Further rounds that a forecast tells ε after."""
_MOST_MECHANISMS = 100
"""Different ones in a ledger; a forecast composes all of them some dozens of times."""
_MOST_DEVICES = 20
"""Of one unit that have a row each."""
PAGE, DOCUMENT = "report.html", "report.json"
_PROBES = ("probe.json",)
_CANARIES = ("canaries.json", "canaries/canaries.json")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report is asked for.

    Attributes:
        path: ledger or folder, as the officer named it.
        command: the whole command, to make the report again.
        public_key: hex, of who should have signed.
        device_ledgers: what devices wrote down.
        device_folder: where more of that lies, as the officer named it.
        probes: results of ``audit probe``; None: where the folder has them.
        canaries: results of ``audit canaries``; None: where the folder has them.
    """

    path: Path
    command: str
    public_key: str | None = None
    device_ledgers: Sequence[Path] = ()
    device_folder: Path | None = None
    probes: Path | None = None
    canaries: Path | None = None


def make_report(evidence: Evidence, options: ReportOptions) -> dict[str, Any]:
    """Audit, and tell it all; ``verdict.holds`` says whether it holds.

    Raises:
        LedgerError: a ledger can't be read.
        DataError: results of probes or canaries can't be read.
    """
    # 1. The ledger, the run, the devices.
    verification = verify(
        evidence, public_key=options.public_key, device_ledgers=options.device_ledgers
    )
    chain = verification.chain
    # 2. What was measured on the running program.
    probes = find_results(options.probes, evidence.folder, _PROBES)
    canaries = find_results(options.canaries, evidence.folder, _CANARIES)
    probed = None if probes is None else read_probes(probes, chain)
    watched = None if canaries is None else read_canaries(canaries, chain)
    measured = [m for m in (probed, watched) if m is not None]
    faults = [fault for m in measured for fault in m.faults]
    # 3. All of it in order.
    devices = _devices(verification, evidence.devices)
    return {
        "report": {
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "version": code_version(),
            "command": options.command,
            "subject": (evidence.folder or evidence.ledger).resolve().name,
            "ledger": str(evidence.ledger),
            "run": str(evidence.run) if evidence.run else None,
            "server": str(evidence.server) if evidence.server else None,
            "anchor": str(evidence.anchor) if evidence.anchor else None,
        },
        "verdict": {
            "holds": verification.holds and not faults,
            "sentence": verdict(verification, faults),
            "faults": [asdict(s) for s in faults_of(verification.findings, faults)],
            "cautions": [asdict(s) for s in cautions(verification)],
        },
        "guarantee": _guarantee(verification, faults),
        "checks": [_check(finding) for finding in verification.findings],
        "cost": None if verification.cost is None else verification.cost.to_dict(),
        "ledger": None if chain is None else _ledger(chain, verification),
        "forecast": _forecast(verification, evidence.ledger),
        **_spending(verification),
        "devices": [device for device in devices if device["unit"] in (USER, None)],
        "event_level": [device for device in devices if device["unit"] not in (USER, None)],
        "probes": None if probed is None else probed.to_dict(),
        "canaries": None if watched is None else watched.to_dict(),
        "hazards": [
            hazard.to_dict() for hazard in hazards(verification, probes=probed, canaries=watched)
        ],
        "commands": _commands(evidence, options, measured),
    }


def check_free(out: Path) -> None:
    """Refuse a folder that has a report: nothing is overwritten.

    Raises:
        RunFolderError: it has one, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out}: is a file; choose another --out")
    for name in (PAGE, DOCUMENT):
        if (out / name).exists():
            raise RunFolderError(f"{out / name}: exists already; choose another --out")


def write_report(document: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Write page and document into ``out``; returns where they are.

    Raises:
        RunFolderError: the folder has a report already.
        OSError: it can't be written.
    """
    check_free(out)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    page = render(document)
    out.mkdir(parents=True, exist_ok=True)
    # A path may hold bytes that are no text.
    write_atomically(out / DOCUMENT, text.encode("utf-8", "backslashreplace"))
    write_atomically(out / PAGE, page.encode("utf-8", "replace"))
    return {"page": str(out / PAGE), "document": str(out / DOCUMENT)}


def _check(finding: Finding) -> dict[str, Any]:
    asked = ASKED.get(finding.check, "Does this device tell what the server tells?")
    return {**finding.to_dict(), "asked": asked}


def _guarantee(verification: Verification, faults: Sequence[str]) -> dict[str, Any]:
    chain, cost = verification.chain, verification.cost
    why_not = objection(verification, faults)
    level, sentence = "bad", None
    if why_not is None and chain is not None and cost is not None:
        sentence = guarantee(chain.opening, cost, Scope.of(chain))
        size = chain.opening.population_size
        level = strength(cost.credited, delta=cost.delta, population_size=size)
    return {"sentence": sentence, "why_not": why_not, "level": level}


def _ledger(chain: Chain, verification: Verification) -> dict[str, Any]:
    opening, scope = chain.opening, Scope.of(chain)
    return {
        "population": opening.population,
        "population_size": opening.population_size,
        "unit": opening.unit,
        "adjacency": opening.adjacency,
        "randomness": opening.randomness,
        "code_version": opening.code_version,
        "config_digest": opening.config_digest,
        "public_key": verification.public_key,
        "identity": chain.identity,
        "head": verification.head,
        "entries": len(chain.entries),
        "releases": scope.releases,
        "pending": len(chain.pending),
        "earlier_ledgers": len(opening.earlier),
        "earlier_releases": scope.earlier,
        "first": scope.first,
        "last": scope.last,
    }


def _spending(verification: Verification) -> dict[str, Any]:
    chain, cost = verification.chain, verification.cost
    if chain is None or cost is None:
        return {"releases": [], "spent": []}
    groups = group_releases(chain)
    spent = spent_along(chain, groups, cost)
    shown, so_far = [], 0
    for group in groups:
        so_far += group.releases
        shown.append(group.to_dict(spent.get(so_far)))
    return {
        "releases": shown,
        "spent": [{"releases": n, "epsilon": figure} for n, figure in spent.items()],
    }


def _forecast(verification: Verification, ledger: Path) -> dict[str, Any]:
    """The forecast, or why there is none."""
    chain, cost = verification.chain, verification.cost
    if chain is None or cost is None:
        return {"why_not": "the ledger isn't whole"}
    if cost.credited is None or math.isinf(cost.credited):
        return {"why_not": "ε is infinite or unknown: nothing is left"}
    if cost.credited != cost.pld:
        return {"why_not": "the sampler isn't believed, and a forecast rests on it"}
    if len(releases_of(chain)) > _MOST_MECHANISMS:
        return {"why_not": "it takes too long for so many different mechanisms: ask audit forecast"}
    try:
        found = forecast(chain, ledger=ledger, rounds=_MORE, spent=cost.pld)
        return {"why_not": None, **found.to_dict()}
    except (LedgerError, ConfigError) as error:
        return {"why_not": str(error)}


def _devices(verification: Verification, folder: Path | None) -> list[dict[str, Any]]:
    """One row a device's ledger; of many of one unit in ``folder`` that don't fail, one row together."""
    many: dict[str, list[Device]] = {}
    rows = []
    for device in verification.devices:
        kept = device.path.parent == folder and device.finding.outcome != "fails"
        if kept and device.unit is not None:
            many.setdefault(device.unit, []).append(device)
        else:
            rows.append(describe_device(device))
    for unit, devices in many.items():
        if folder is None or len(devices) <= _MOST_DEVICES:
            rows += [describe_device(device) for device in devices]
            continue
        of_unit = next(f for f in verification.findings if f.check == f"devices, {unit}-level")
        rows.append(summarise(folder, of_unit, devices))
    return rows


def _commands(
    evidence: Evidence, options: ReportOptions, measured: Sequence[Measurement]
) -> list[dict[str, str]]:
    """What makes each part of the page again."""
    subject = ["fedprofile", "audit"]
    path = str(options.path)
    # Where the folder names the place itself, a command that names it would say that the officer did.
    named = evidence.anchor is not None and evidence.trusting is None
    anchored = ["--anchor", str(evidence.anchor)] if named else []
    pinned = [] if options.public_key is None else ["--public-key", options.public_key]
    more = [*anchored, *pinned]
    for device in options.device_ledgers:
        more += ["--device-ledger", str(device)]
    if options.device_folder is not None:
        more += ["--device-folder", str(options.device_folder)]
    further = [part for number in _MORE for part in ("--rounds", str(number))]
    commands = [
        ("checks, ε by three accountants, devices", [*subject, "verify", path, *more]),
        ("forecast", [*subject, "forecast", path, *anchored, *further]),
    ]
    told = [{"what": what, "command": shlex.join(command)} for what, command in commands]
    found = {m.result.__class__.__name__.lower(): m.result.run.command for m in measured}
    config = evidence.folder and evidence.folder / ("config.toml" if evidence.run else SERVER)
    for what, how in (("probes", "probe"), ("canaries", "canaries")):
        if what in found:
            told.append({"what": f"{what}, as their file says", "command": _quoted(found[what])})
        elif config is not None and (evidence.run is not None or what == "probes"):
            # Canaries are users of a simulation; a server's devices are their owners'.
            out = config.with_name("probe.json" if what == "probes" else "canaries")
            command = [*subject, how, "--config", str(config), "--out", str(out)]
            told.append({"what": f"{what}, not run yet", "command": shlex.join(command)})
    what = "this page, with ε over releases, their table and the hazards"
    told.append({"what": what, "command": options.command})
    return told


def _quoted(command: str) -> str:
    """A command of a file that anybody may have written: one command, whatever is pasted."""
    try:
        return shlex.join(shlex.split(command))
    except ValueError:  # an open quotation
        return shlex.quote(command)
