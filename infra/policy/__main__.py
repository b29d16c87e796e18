"""Checks manifests and compiled pipelines before they reach a cluster.

    python -m infra.policy FILE...              # YAML or JSON, as rendered: kubectl kustomize DIR > FILE
    python -m infra.policy --release FILE...    # also refuses what only an example may leave open

Findings go to stdout, one letter each; exit 77 if there are any, 66 if a file cannot be read, 64 if none is named, 0 otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infra.policy.checks import check
from infra.policy.documents import UnreadableError, read
from model.errors import ExitCode


def main(arguments: list[str]) -> int:
    """The exit code."""
    release = "--release" in arguments
    paths = [Path(name) for name in arguments if name != "--release"]
    if not paths or any(str(path).startswith("-") for path in paths):
        print(__doc__, file=sys.stderr)
        return ExitCode.USAGE
    try:
        documents = read(paths)
    except UnreadableError as error:
        print(f"{error}\nhint: give rendered manifests: kubectl kustomize DIR > FILE", file=sys.stderr)
        return ExitCode.MISSING_INPUT
    findings = check(documents, release=release)
    for finding in findings:
        print(finding.letter())
    print(f"{len(documents)} documents, {len(findings)} findings", file=sys.stderr)
    return ExitCode.REFUSED if findings else ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
