"""``galscan vet``: visual grading of a sample of a scan, on a local web page."""

from __future__ import annotations

import asyncio
import getpass
import html
import json
import secrets
import sys
import webbrowser
from pathlib import Path
from typing import Any

from galscan.core.errors import InputError
from galscan.core.files import atomic_path, read_json, storage_errors
from galscan.core.staging import locked
from galscan.scanning.run import Run, open_run
from galscan.vetting import batches, chosen, gradebook, planning, sampling

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
    objects: str | Path | None = None,
    import_csv: str | Path | None = None,
    export_csv: str | Path | None = None,
) -> dict[str, Any]:
    """Draw the sample of a run to be graded, once; then serve the grading page until Ctrl-C.

    Parameters
    ----------
    run : path
        Folder of a finished scan.
    best, size, seed : int
        Used when the sample is drawn: the number of top candidates that are all graded (default none), the total
        number of objects, and the random seed.
    rank : int, optional
        The sample is allocated to make the interval of the purity down to this rank narrowest; default 1,000, or the
        last rank.
    width : float, optional
        Instead of `size`: width of that interval; the sample is as large as it requires.
    port : int
        Port of the server; 0 chooses a free one. Only this machine can reach it, with the token in the URL.
    browser : bool
        Open the page in the browser.
    serve : bool
        False only draws the sample, and imports or exports grades.
    objects : path, optional
        Instead of a sample: grade all objects of a table of ids, for example one saved from the page of
        `galscan.make_map`. They become a list of their own in the data home (`galscan.vetting.chosen`). Its grades are
        training labels for any target; as the objects are no random sample, purity is not estimated from them.
    import_csv, export_csv : path, optional
        Import grades from a table, or export all grades to one; the page is not served then.

    Returns
    -------
    dict
        JSON-serialisable: the sample by stratum, counts per grader, agreement between graders; ``text`` is the same as
        a table.

    Raises
    ------
    InputError
        If the run is not finished, a store is missing or has changed, or a table of grades does not fit.
    ConflictError
        If another process serves the run.
    """
    opened = open_run(run).require_single_target()
    if objects is not None:
        if best is not None or width is not None or rank is not None:
            raise InputError("--objects: all objects of the table are graded; omit --best, --width and --rank")
        opened = chosen.list_of(opened, Path(objects))
        best = size = opened.info.candidates
        _say(f"{size:,} objects of {objects}, as the list {opened.path}")
    path = opened.path / gradebook.FILE
    with locked(opened.path / FOLDER):
        if not path.exists():
            if width is not None:
                rank = min(sampling.RANK, len(planning.scores(opened))) if rank is None else rank
                size = planning.size_for(opened, width, rank, best or 0)
                _say(f"{size:,} objects to grade for a purity interval of width {width:g} at rank {rank:,}")
            with storage_errors(path):
                batches.begin(opened, path, best=best, size=size, rank=rank, seed=seed)
        with gradebook.GradeBook(path, opened.info.fingerprint) as book:
            batches.extend(book)  # the first batch, or one that is due since a server was killed
            if import_csv is not None:
                new, known = book.read_csv(Path(import_csv))
                _say(f"{new:,} grades imported, {known:,} were known already")
                batches.extend(book)
            if export_csv is not None:
                _say(f"{book.write_csv(Path(export_csv)):,} grades written to {export_csv}")
            if serve and import_csv is None and export_csv is None:
                _serve(opened, book, port, browser)
            return _summary(opened, book)


def _serve(run: Run, book: gradebook.GradeBook, port: int, browser: bool) -> None:
    from galscan.vetting import server

    # The same port and token as before, so that an open page still works after the server is restarted.
    path = run.path / FOLDER / "server.json"
    match read_json(path) if path.is_file() else None:
        case {"token": str(token), "port": int(last_port)}:
            pass
        case _:
            token, last_port = secrets.token_urlsafe(24), 0
    title = f"{run.info.target}: {run.path.name}"
    app = server.application(book, run.stores(), token, title, _question(run), _login())

    def ready(url: str, bound_port: int) -> None:
        _write_private(path, json.dumps({"token": token, "port": bound_port}))
        _say(f"grade at {url}\nonly this machine can open this URL; Ctrl-C stops the server, grades are kept")
        if browser:
            # Every user of this machine sees the command line of the browser: the token must not be on it.
            _write_private(redirect, f'<meta http-equiv="refresh" content="0; url={html.escape(url)}">')
            webbrowser.open(redirect.absolute().as_uri())

    redirect = path.with_name("open.html")
    try:
        asyncio.run(server.serve(app, token, [port] if port else [last_port, 0], ready))
    finally:
        redirect.unlink(missing_ok=True)


def _question(run: Run) -> str:
    """Return the target that the page asks for; "" for a list of similar objects, whose graders choose theirs."""
    return "" if run.info.is_similarity_list else run.info.target


def _login() -> str:
    """Return the login name, the page's first name of the grader; "" if there is none or it cannot be a grader's."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no name for its user
        return ""
    return name if gradebook.is_grader(name) else ""


def _write_private(path: Path, text: str) -> None:
    """Write a file that only the owner may read."""
    with atomic_path(path) as temporary:
        temporary.touch(0o600)
        temporary.write_text(text, encoding="utf-8")


def _summary(run: Run, book: gradebook.GradeBook) -> dict[str, Any]:
    items, current = book.items(), book.current()
    graded = set(current["item"])
    sample = [
        {
            "stratum": s.name, "objects": s.population, "drawn": int((items["stratum"] == s.name).sum()),
            "graded": int(items.loc[items["stratum"] == s.name, "item"].isin(graded).sum()),
        }
        for s in book.strata()
    ]  # fmt: skip
    summary: dict[str, Any] = {
        "run": str(run.path), "grades": str(book.path), "sample": sample,
        "to_come": batches.total_size(book) - len(items),
        "controls": {kind: int((items["kind"] == kind).sum()) for kind in (sampling.POSITIVE, sampling.BLANK)},
        "graders": book.graders(), "agreement": book.agreement(),
        "next": f"galscan train-rare --target NEW.toml --grades {run.path}" if run.info.is_similarity_list
        else f"galscan purity {run.path}",
    }  # fmt: skip
    return summary | {"text": _text(summary)}


def _text(summary: dict[str, Any]) -> str:
    lines = [f"grades       {summary['grades']}"]
    lines += [
        f"{s['stratum']:<15} {s['graded']:,} of {s['drawn']:,} graded, of {s['objects']:,} objects"
        for s in summary["sample"]
    ]
    if summary["to_come"]:
        lines.append(f"to come      {summary['to_come']:,} more, in batches; each is allocated by the grades so far")
    controls = summary["controls"]
    lines += [f"controls     {controls[sampling.POSITIVE]} known targets, {controls[sampling.BLANK]} blank frames"]
    lines += gradebook.summary_lines(summary["graders"], summary["agreement"])
    return "\n".join([*lines, f"next         {summary['next']}"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
