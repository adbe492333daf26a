"""The audit: findings, exceptions with an end, and the difference between clean and not looked at."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from tools import licences
from tools.audit import Exemption, ask_again, judge, read_exemptions, stale_licences

NONE = "packages, no known vulnerability that is not accepted"
TODAY = datetime.date(2026, 11, 20)
CLEAN: dict[str, Any] = {"name": "six", "version": "1.17.0", "vulns": []}
HIT: dict[str, Any] = {
    "name": "pillow",
    "version": "11.0.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["11.1"], "description": "x"}],
}
UNKNOWN = {"name": "tqdm", "skip_reason": "Dependency not found on PyPI and could not be audited: tqdm (4.70.1)"}


def _exempt(package: str = "pillow", expires: datetime.date = TODAY, name: str = "CVE-2") -> Exemption:
    return Exemption(name, package, "we decode none of that format", expires)


def test_a_finding_is_named_with_the_release_that_fixes_it_and_packages_without_one_pass() -> None:
    assert judge({"dependencies": [CLEAN]}, [], TODAY) == ([f"1 {NONE}"], 0)
    lines, status = judge({"dependencies": [CLEAN, HIT]}, [], TODAY)
    assert status == 1
    assert lines == ["error: pillow 11.0.0: PYSEC-1; fixed in 11.1"]


def test_an_exception_holds_until_its_day_for_its_package_and_by_any_of_the_names() -> None:
    assert judge({"dependencies": [HIT]}, [_exempt()], TODAY)[1] == 0
    assert judge({"dependencies": [HIT]}, [_exempt(name="PYSEC-1")], TODAY)[1] == 0
    assert judge({"dependencies": [HIT]}, [_exempt(package="six")], TODAY)[1] == 1
    lines, status = judge({"dependencies": [HIT]}, [_exempt(expires=TODAY - datetime.timedelta(1))], TODAY)
    assert status == 1
    assert "expired on 2026-11-19" in lines[0]


@pytest.mark.parametrize("report", [[UNKNOWN], [CLEAN, UNKNOWN], []])
def test_what_was_not_looked_up_is_an_error_not_a_pass(report: list[dict[str, Any]]) -> None:
    lines, status = judge({"dependencies": report}, [], TODAY)
    assert status == 3
    assert f"of {len(report)} packages could not be audited" in lines[-2]
    assert "proves nothing" in lines[-1]
    assert [line for line in lines if line.startswith("not audited: ")] == [
        f"not audited: {package['skip_reason']}" for package in report if package is UNKNOWN
    ]


def test_an_exception_for_a_licence_ends_on_its_day() -> None:
    assert all(len(exempt.reason) > 20 for exempt in read_exemptions())
    ours = licences.exceptions()
    assert ours
    days = {name: datetime.date.fromisoformat(until) for name, (_, until) in ours.items()}
    assert stale_licences(ours, max(days.values()) + datetime.timedelta(1)) == [
        f"error: licence {name}: its exception in docs/licences.md expired on {day}" for name, day in days.items()
    ]
    assert stale_licences(ours, min(days.values())) == []


def _page(version: str = "4.70.1", *vulnerabilities: dict[str, Any]) -> dict[str, Any]:
    return {"info": {"version": version}, "vulnerabilities": list(vulnerabilities)}


def _weakness(name: str, *aliases: str, withdrawn: str | None = None) -> dict[str, Any]:
    return {"id": name, "aliases": list(aliases), "fixed_in": ["4.71"], "withdrawn": withdrawn}


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (_page(), ([f"2 {NONE}"], 0)),
        (
            _page("4.70.1", _weakness("GHSA-1", "PYSEC-9"), _weakness("PYSEC-9", "GHSA-1")),
            (["error: tqdm 4.70.1: GHSA-1; fixed in 4.71"], 1),
        ),
        (_page("4.70.1", _weakness("GHSA-1", withdrawn="2026-01-01")), ([f"2 {NONE}"], 0)),
    ],
)
def test_a_package_is_judged_by_its_projects_page_when_its_own_cannot_be_had(
    page: dict[str, Any], expected: tuple[list[str], int]
) -> None:
    report = ask_again({"dependencies": [CLEAN, UNKNOWN]}, {"tqdm": "4.70.1"}, {"tqdm": page}.__getitem__)
    assert judge(report, [], TODAY) == expected


def test_a_page_of_another_version_or_none_proves_nothing() -> None:
    def refuse(name: str) -> Any:
        raise OSError(f"no way to {name}")

    newer = ask_again({"dependencies": [UNKNOWN]}, {"tqdm": "4.70.1"}, lambda _: _page("4.80"))
    lines, status = judge(newer, [], TODAY)
    assert (status, lines[0]) == (3, "not audited: tqdm: only the page of 4.80 could be had, 4.70.1 is locked")
    lines, status = judge(ask_again({"dependencies": [UNKNOWN]}, {"tqdm": "4.70.1"}, refuse), [], TODAY)
    assert (status, "no way to tqdm" in lines[0]) == (3, True)
