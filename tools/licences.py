"""The licence of every locked package: `python -m tools.licences` rewrites tools/licences.csv.

Licences are read from the metadata of installed packages. Packages for other platforms are not installed here:
what the list says about them stays.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from importlib import metadata
from pathlib import Path

from tools.lock import REPO, normal, read_lock

__all__ = ["LIST", "PAGE", "PERMITTED", "installed_licence", "listed", "main", "permitted"]

PAGE = REPO / "docs" / "licences.md"  # reasons for exceptions
LIST = REPO / "tools" / "licences.csv"  # package, licence
# What may be installed next to Apache-2.0 code without a word: permissive, or copyleft of single files.
PERMITTED = {
    "0BSD",
    "Apache-2.0",
    "Artistic-1.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "EPL-1.0",
    "EPL-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "TCL",
    "ZPL-2.1",
    "Zlib",
}
_SPDX = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "freebsd": "BSD-2-Clause",
    "new bsd": "BSD-3-Clause",
    "mit license": "MIT",
    "mit licence": "MIT",
    "the mit license (mit)": "MIT",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "zope public license": "ZPL-2.1",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "gplv2 | eplv1": "EPL-1.0 OR GPL-2.0-only",
    "artistic license": "Artistic-1.0 OR GPL-2.0-or-later",
    "gplv2 with linking exception": "GPL-2.0-only WITH GCC-exception-2.0",
    "dual license": "Apache-2.0 OR BSD-3-Clause",
}
_KNOWN_FORM = re.compile(r"^[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+()-]+)*$")


def installed_licence(name: str) -> str | None:
    """Licence of an installed distribution as an SPDX expression; None when it is not installed or says nothing."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    given = about.get("License-Expression")
    if given:
        return str(given)
    said = [(about.get("License") or "").strip()]
    said += [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    for text in said:
        if text.lower() in _SPDX:
            return _SPDX[text.lower()]
        if text and _KNOWN_FORM.match(text) and permitted(text):
            return text
    return None


def permitted(expression: str) -> bool:
    """Whether an SPDX expression of flat ORs and ANDs can be satisfied with PERMITTED licences alone."""
    flat = expression.replace("(", "").replace(")", "").replace("Apache-2.0 WITH LLVM-exception", "Apache-2.0")
    if " AND " in flat and " OR " in flat:  # each part of an AND may be a choice
        return all(permitted(part) for part in flat.split(" AND "))
    if " OR " in flat:
        return any(part in PERMITTED for part in flat.split(" OR "))
    return all(part in PERMITTED for part in flat.split(" AND "))


def listed() -> dict[str, str]:
    """Package -> licence as the list has it."""
    with LIST.open(encoding="utf-8", newline="") as file:
        return dict(csv.reader(file))


def exceptions(page: Path = PAGE) -> dict[str, tuple[str, str]]:
    """Licence that is not PERMITTED -> (reason, date until which that was thought through)."""
    rows = re.findall(r"^\| (\S[^|]+) \| ([^|]+) \| (\d{4}-\d\d-\d\d) \|$", page.read_text("utf-8"), re.MULTILINE)
    return {licence: (reason, until) for licence, reason, until in rows}


def main() -> int:
    """Rewrite the list."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    known, names = listed(), sorted({normal(entry.name) for entry in read_lock()})
    with LIST.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerows((name, installed_licence(name) or known.get(name, "unknown")) for name in names)
    sys.stdout.write(f"{len(names)} packages\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
