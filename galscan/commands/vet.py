"""``galscan vet``: people grade a sample of a scan, on a page of their own browser."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import webbrowser
from pathlib import Path
from typing import Any

from galscan.core.errors import InputError
from galscan.core.files import atomic_path, read_json, storage_errors
from galscan.core.staging import held
from galscan.scanning.run import Run, is_like, open_one
from galscan.store.layout import Store, open_store
from galscan.vetting import batches, gradebook, planning, sampling

FOLDER = "vetting"


def vet(
    run: str | Path,
    *,
    best: int | None = None,
    size: int = sampling.SIZE,
    width: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    port: int = 0,
    browser: bool = True,
    serve: bool = True,
    import_csv: str | Path | None = None,
    export_csv: str | Path | None = None,
) -> dict[str, Any]:
    """Draw the sample of a run that people should grade, once; then serve the page until Ctrl-C.

    Parameters
    ----------
    run : path
        A finished scan.
    best, size, seed : int
        Of the sample, where it is not drawn yet: how many of the best to grade one and all (none by default), how many
        in all, and the seed.
    rank : int, optional
        Grades go where the purity down to this rank becomes narrowest: 1,000 by default, or the last.
    width : float, optional
        Instead of `size`: as many as the interval of that purity needs to be so wide.
    port : int
        0 takes any that is free. Only this machine can reach it, with the token in the address.
    browser : bool
        Open the page.
    serve : bool
        False only draws the sample, and imports or exports.
    import_csv, export_csv : path, optional
        Take in grades from a table, write all grades to one; the page is not served then.

    Returns
    -------
    dict
        JSON-able: the sample by stratum, what each grader did, how they agree; ``text`` is the same for people.

    Raises
    ------
    InputError
        If the run is not finished, a store has gone or changed, or a table of grades does not fit.
    ConflictError
        If another server is at work on the run.
    """
    opened = open_one(run)
    path = opened.path / gradebook.FILE
    with held(opened.path / FOLDER):
        if not path.exists():
            if width is not None:
                rank = min(sampling.RANK, len(planning.scores(opened))) if rank is None else rank
                size = planning.size_for(opened, width, rank, best or 0)
                _say(f"{size:,} objects are to be graded for an interval of purity at rank {rank:,} {width:g} wide")
            with storage_errors(path):
                batches.begin(opened, path, best=best, size=size, rank=rank, seed=seed)
        with gradebook.GradeBook(path, str(opened.info["fingerprint"])) as book:
            batches.extend(book)  # the first batch, or one that a server that died was about to bring
            if import_csv is not None:
                new, known = book.read_csv(Path(import_csv))
                _say(f"{new:,} grades taken in, {known:,} were there already")
                batches.extend(book)
            if export_csv is not None:
                _say(f"{book.write_csv(Path(export_csv)):,} grades written to {export_csv}")
            if serve and import_csv is None and export_csv is None:
                _serve(opened, book, port, browser)
            return _told(opened, book)


def _serve(run: Run, book: gradebook.GradeBook, port: int, browser: bool) -> None:
    from galscan.vetting import server

    # A page that is open goes on when the server is started anew: at the same address, with the same token.
    known = run.path / FOLDER / "server.json"
    before = read_json(known) if known.is_file() else None
    if not (isinstance(before, dict) and isinstance(before.get("token"), str) and type(before.get("port")) is int):
        before = {"token": secrets.token_urlsafe(24), "port": 0}
    token = before["token"]
    app = server.application(book, _stores(run), token, f"{run.info['target']}: {run.path.name}")

    def ready(address: str, taken: int) -> None:
        _keep(known, {"token": token, "port": taken})
        _say(f"grade at {address}\nonly from this machine, with this address; Ctrl-C ends it, grades are kept")
        if browser:
            webbrowser.open(address)

    wanted = [port] if port else [before["port"], 0]
    asyncio.run(server.serve(app, token, wanted, ready))


def _keep(path: Path, told: dict[str, Any]) -> None:
    """Write what only the owner may read."""
    with atomic_path(path) as temporary:
        temporary.touch(0o600)
        temporary.write_text(json.dumps(told), encoding="utf-8")


def _stores(run: Run) -> dict[str, Store]:
    """Open the stores of a run, which must be as they were when it was scanned."""
    stores = {}
    for entry in run.info["stores"]:
        store = open_store(entry["path"])
        if store.content_hash != entry["content_hash"]:
            raise InputError(f"{entry['path']} changed since the scan: its pictures are others now; scan it again")
        stores[store.name] = store
    return stores


def _told(run: Run, book: gradebook.GradeBook) -> dict[str, Any]:
    items, current = book.items(), book.current()
    graded = set(current["item"])
    sample = [
        {
            "stratum": s.name, "objects": s.population, "drawn": int((items["stratum"] == s.name).sum()),
            "graded": int(items.loc[items["stratum"] == s.name, "item"].isin(graded).sum()),
        }
        for s in book.strata()
    ]  # fmt: skip
    told: dict[str, Any] = {
        "run": str(run.path), "grades": str(book.path), "sample": sample, "to_come": batches.in_all(book) - len(items),
        "controls": {kind: int((items["kind"] == kind).sum()) for kind in (sampling.POSITIVE, sampling.BLANK)},
        "graders": book.graders(), "agreement": book.agreement(),
        "next": f"galscan train-rare --target NEW.toml --grades {run.path}" if is_like(run.info)
        else f"galscan purity {run.path}",
    }  # fmt: skip
    return told | {"text": _text(told)}


def _text(told: dict[str, Any]) -> str:
    lines = [f"grades       {told['grades']}"]
    lines += [
        f"{s['stratum']:<15} {s['graded']:,} of {s['drawn']:,} graded, of {s['objects']:,} objects"
        for s in told["sample"]
    ]
    if told["to_come"]:
        lines.append(f"to come      {told['to_come']:,} more, in batches: the grades say where the next ones tell most")
    controls = told["controls"]
    lines += [f"controls     {controls[sampling.POSITIVE]} known targets, {controls[sampling.BLANK]} blank frames"]
    lines += gradebook.in_words(told["graders"], told["agreement"])
    return "\n".join([*lines, f"next         {told['next']}"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
