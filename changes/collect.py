"""Move the fragments of this folder into CHANGELOG.md: ``python changes/collect.py [VERSION] [--check]``.

They are added to the section of the version (default: that of galscan); a new section has today's date.
``--check`` only tests the names of the fragments.
"""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
KINDS = {"feature": "Added", "change": "Changed", "fix": "Fixed", "doc": "Documentation"}


def fragments(folder: Path) -> dict[Path, str]:
    """Return the fragments of a folder with their kinds; raise `ValueError` for a name that is none."""
    found = {}
    for path in sorted(folder.glob("*.md")):
        if path.name == "README.md":
            continue
        parts = path.name.split(".")
        if len(parts) != 3 or parts[1] not in KINDS:
            raise ValueError(f"{path}: name it NAME.KIND.md, with {', '.join(KINDS)} as KIND")
        if not path.read_text(encoding="utf-8").strip():
            raise ValueError(f"{path} is empty; describe the change in a sentence, or remove the file")
        found[path] = parts[1]
    return found


def entry(text: str) -> str:
    """Return a fragment as an item of a list."""
    lines = text.strip().removeprefix("- ").splitlines()
    return "\n".join(["- " + lines[0].strip(), *("  " + line.strip() for line in lines[1:])])


def collect(changelog: str, version: str, entries: dict[str, list[str]], today: datetime.date) -> str:
    """Return the changelog with the entries of each kind, first in their part of the section of a version."""
    head = re.search(rf"^## \[{re.escape(version)}\].*\n", changelog, flags=re.MULTILINE)
    if head is None:
        first = re.search(r"^## \[", changelog, flags=re.MULTILINE)
        at = first.start() if first else len(changelog)
        changelog = f"{changelog[:at]}## [{version}] - {today.isoformat()}\n\n{changelog[at:]}"
        return collect(changelog, version, entries, today)
    after = re.search(r"^## \[", changelog[head.end() :], flags=re.MULTILINE)
    end = head.end() + after.start() if after else len(changelog)
    section = changelog[head.end() : end]
    for kind, title in KINDS.items():
        if not entries.get(kind):
            continue
        items = "\n".join(map(entry, entries[kind])) + "\n"
        part = f"### {title}\n\n"
        if part in section:
            section = section.replace(part, part + items, 1)
        else:
            section = f"{section.rstrip()}\n\n{part}{items}\n"
    return f"{changelog[: head.end()]}\n{section.strip()}\n\n{changelog[end:]}".rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    try:
        found = fragments(FOLDER)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "--check" in arguments:
        return 0
    root = FOLDER.parent
    text = (root / "galscan" / "core" / "version.py").read_text(encoding="utf-8")
    version = next(iter(arguments), re.findall(r'"(.+?)"', text)[-1])
    entries: dict[str, list[str]] = {}
    for path, kind in found.items():
        entries.setdefault(kind, []).append(path.read_text(encoding="utf-8"))
    changelog = root / "CHANGELOG.md"
    today = datetime.datetime.now(datetime.UTC).date()
    changelog.write_text(collect(changelog.read_text(encoding="utf-8"), version, entries, today), encoding="utf-8")
    for path in found:
        path.unlink()
    print(f"{len(found)} fragments are in CHANGELOG.md, version {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
