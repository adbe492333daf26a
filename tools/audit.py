"""Known vulnerabilities of the locked packages: `python -m tools.audit` (make audit). Asks the network.

pip-audit ends with status 0 when its service knows none of the packages, for want of a network or behind a mirror
without that service: an audit of nothing. Here that is an error of its own. Some mirrors serve a project's page but
not its releases' pages: a package whose page could not be had is judged by the project's page when that describes the
locked version. Status: 0 no known vulnerability, 1 some, or an exception (of a vulnerability or a licence) that has
expired, 3 packages could not be looked up.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pip._internal.models.index import PyPI

from tools import licences
from tools.lock import LOCK, normal, read_lock

__all__ = ["EXCEPTIONS", "Exemption", "ask_again", "judge", "main", "read_exemptions", "stale_licences"]

EXCEPTIONS = Path(__file__).with_name("audit-exceptions.toml")


@dataclass(frozen=True)
class Exemption:
    """A vulnerability that we live with for a while: why, and until when."""

    id: str
    package: str
    reason: str
    expires: datetime.date


def read_exemptions(path: Path = EXCEPTIONS) -> list[Exemption]:
    """The file's `[[exception]]` tables; a missing or unknown key is a TypeError."""
    return [Exemption(**table) for table in tomllib.loads(path.read_text("utf-8")).get("exception", [])]


def judge(report: Mapping[str, Any], exemptions: list[Exemption], today: datetime.date) -> tuple[list[str], int]:
    """What pip-audit's JSON report comes to: lines to print and the exit status."""
    lines, status = [], 0
    allowed = {e.id: e for e in exemptions}
    for package in report["dependencies"]:
        for found in package.get("vulns", []):
            names = {found["id"], *found.get("aliases", [])}
            exempt = next((allowed[n] for n in sorted(names) if n in allowed), None)
            if exempt and exempt.package == package["name"] and today <= exempt.expires:
                lines.append(f"accepted until {exempt.expires}: {package['name']} {found['id']}: {exempt.reason}")
                continue
            why = f" (its exception expired on {exempt.expires})" if exempt else ""
            fixed = ", ".join(found.get("fix_versions", [])) or "no release"
            lines.append(f"error: {package['name']} {package['version']}: {found['id']}{why}; fixed in {fixed}")
            status = 1
    unknown = [package for package in report["dependencies"] if "skip_reason" in package]
    total = len(report["dependencies"])
    if unknown or not total:
        lines += [f"not audited: {package['skip_reason']}" for package in unknown]
        lines.append(f"error: {len(unknown)} of {total} packages could not be audited")
        lines.append("hint: run it where the vulnerability service can be reached; this run proves nothing about them")
        status = status or 3
    elif not status:
        lines.append(f"{total} packages, no known vulnerability that is not accepted")
    return lines, status


def ask_again(report: Mapping[str, Any], locked: Mapping[str, str], fetch: Callable[[str], Any]) -> dict[str, Any]:
    """The report with the packages that it lacks judged by their project's page, where that is of the locked version.

    Args:
        report: pip-audit's.
        locked: version of each package.
        fetch: a project's page as the index has it in JSON, or what it raised as an OSError or ValueError.
    """
    dependencies = []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            name = normal(package["name"])
            try:
                package = _from_project(name, locked[name], fetch(name))
            except (OSError, ValueError, KeyError) as error:
                package = {**package, "skip_reason": f"{package['skip_reason']}; {name}: {error}"}
        dependencies.append(package)
    return {**report, "dependencies": dependencies}


def _from_project(name: str, version: str, page: Any) -> dict[str, Any]:
    newest = page["info"]["version"]
    if newest != version:
        return {"name": name, "skip_reason": f"{name}: only the page of {newest} could be had, {version} is locked"}
    found = [v for v in page["vulnerabilities"] if not v["withdrawn"]]
    merged: dict[frozenset[str], dict[str, Any]] = {}  # one weakness under several names is reported once
    for v in found:
        names = frozenset({v["id"], *v["aliases"]})
        merged.setdefault(names, {"id": v["id"], "aliases": v["aliases"], "fix_versions": v["fixed_in"]})
    return {"name": name, "version": version, "vulns": list(merged.values())}


def _fetch(name: str) -> Any:
    with urllib.request.urlopen(f"{PyPI.pypi_url}/{name}/json", timeout=60) as answer:  # noqa: S310 - an https constant of pip
        return json.load(answer)


def stale_licences(exceptions: Mapping[str, tuple[str, str]], today: datetime.date) -> list[str]:
    """Exceptions of docs/licences.md whose day is over, an error line each."""
    over = {name: until for name, (_, until) in exceptions.items() if datetime.date.fromisoformat(until) < today}
    return [f"error: licence {name}: its exception in docs/licences.md expired on {day}" for name, day in over.items()]


def main() -> int:
    """Audit requirements.lock."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--disable-pip",
        "--require-hashes",
        "-r",
        str(LOCK),
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        sys.stdout.write(f"error: nothing was audited: pip-audit ended with {done.returncode}: {last}\n")
        return 3
    today = datetime.datetime.now(datetime.UTC).date()
    report = ask_again(report, {entry.name: entry.version for entry in read_lock()}, _fetch)
    lines, status = judge(report, read_exemptions(), today)
    stale = stale_licences(licences.exceptions(), today)
    lines, status = lines + stale, 1 if stale else status
    sys.stdout.write("\n".join(lines) + f"\n{len(read_lock())} entries in {LOCK.name}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
