"""Print what an image is made of, as a CycloneDX 1.6 document: `python sbom.py --of fairvlm > fairvlm.cdx.json`.

It lists the Python distributions of the running interpreter, and the packages of a Debian below it, if there is one.
Names, versions, licences and package URLs, and who needs whom, are what a scanner for known vulnerabilities reads.
Only the standard library is used, so that the image contains nothing for the sake of being listed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any
from urllib.parse import quote

OS_RELEASE = "/etc/os-release"


def normalised(name: str) -> str:
    """A distribution's name as package URLs write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def purl(name: str, version: str) -> str:
    """Package URL of a Python distribution."""
    return f"pkg:pypi/{normalised(name)}@{quote(version)}"


def licences(about: metadata.PackageMetadata) -> list[dict[str, Any]]:
    """The licence that a distribution declares: an SPDX expression, else names from its classifiers, else its field."""
    if expression := about.get("License-Expression"):
        return [{"expression": expression}]
    classifiers = about.get_all("Classifier") or []
    names = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License :: ")]
    named = set(names) - {"OSI Approved"} or {about.get("License", "").strip()}
    # Some have put the whole text into the field.
    return [{"license": {"name": name}} for name in sorted(named) if 0 < len(name) < 100]


def component(found: metadata.Distribution, kind: str = "library") -> dict[str, Any]:
    """One installed Python distribution."""
    reference = purl(found.name, found.version)
    described = {"type": kind, "bom-ref": reference, "name": found.name, "version": found.version, "purl": reference}
    declared = licences(found.metadata)
    return {**described, "licenses": declared} if declared else described


def needs(found: metadata.Distribution, installed: dict[str, metadata.Distribution]) -> list[str]:
    """References of the installed distributions that one names as requirements."""
    names = {normalised(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in found.requires or []}
    return sorted(purl(installed[name].name, installed[name].version) for name in names & installed.keys())


def system_packages() -> list[dict[str, Any]]:
    """Packages of Debian or what derives from it; elsewhere none."""
    if not shutil.which("dpkg-query"):
        return []
    with open(OS_RELEASE) as handle:
        release = dict(line.strip().split("=", 1) for line in handle if "=" in line)
    system, number = (release.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    command = ["dpkg-query", "--show", "--showformat=${Package}\\t${Version}\\t${Architecture}\\n"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    listed = []
    for line in shown.splitlines():
        name, version, architecture = line.split("\t")
        reference = (
            f"pkg:deb/{system}/{quote(name)}@{quote(version, safe='')}?arch={architecture}&distro={system}-{number}"
        )
        listed.append({"type": "library", "bom-ref": reference, "name": name, "version": version, "purl": reference})
    return listed


def document(subject: str) -> dict[str, Any]:
    """The whole document, without a time or a serial number: the same image gives the same bytes.

    Args:
        subject: the distribution that the image is about.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    installed = {normalised(found.name): found for found in metadata.distributions()}
    about = component(metadata.distribution(subject), "application")
    libraries = [found for name, found in sorted(installed.items()) if name != normalised(subject)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": about},
        "components": [*(component(found) for found in libraries), *system_packages()],
        "dependencies": [
            {"ref": purl(found.name, found.version), "dependsOn": needs(found, installed)}
            for _, found in sorted(installed.items())
        ],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", required=True, metavar="NAME", help="the distribution that the image is about")
    json.dump(document(parser.parse_args().of), sys.stdout, indent=1)
    print()
