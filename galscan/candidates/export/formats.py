"""``galscan export``: candidates as catalog, regions, image pages or Zooniverse subjects; coverage; morphology."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from galscan.candidates import columns, coverage, crossmatch, external_catalogs
from galscan.candidates import morphology as morphology_catalog
from galscan.candidates.export import tables
from galscan.candidates.export.hats import hats
from galscan.candidates.export.pdf import pdf
from galscan.candidates.export.zooniverse import zooniverse
from galscan.candidates.reference_catalog import RADIUS, check_radius, read_known
from galscan.candidates.run import max_purity, open_candidates, provenance, select
from galscan.candidates.table_stream import TableStream
from galscan.core import home
from galscan.core.errors import ConflictError, InputError, nearest
from galscan.scanning.run import GRADED, Run
from galscan.surveys.tables import Catalog

SUFFIXES = {
    ".fits": "fits", ".fit": "fits", ".vot": "votable", ".votable": "votable", ".xml": "votable", ".csv": "csv",
    ".parquet": "parquet", ".pq": "parquet", ".reg": "ds9", ".pdf": "pdf", ".moc.fits": "moc", ".moc.json": "moc",
}  # fmt: skip
FORMATS = ("fits", "votable", "parquet", "csv", "ds9", "pdf", "moc", "zooniverse", "hats")
FOLDERS = ("zooniverse", "hats")
_RUN_FILES = {
    "run.json", "candidates.parquet", "candidates.fits", "contact.png", "report.html", "map.html", "ledger.jsonl",
    "purity.json", f"{GRADED}.parquet", f"{GRADED}.fits", "grades.sqlite", "scores", "quarantine", "embeddings",
    "vetting",
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """Summary of an export; usable as its path.

    Attributes
    ----------
    path : Path
    format : str
    rows, of : int
        Candidates written, and in the run; for a MOC, 0 and the candidates in the run.
    known : int, optional
        Number of written candidates in a reference list or service.
    recovered : list of crossmatch.Recovered
        Outcome of the objects of each list.
    details : dict
        Details of the format: order of the MOC, rows left out, batches.
    warnings : list of str
        Possible problems of reference lists and services.
    """

    path: Path
    format: str
    rows: int
    of: int
    known: int | None = None
    recovered: list[crossmatch.Recovered] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def bytes(self) -> int:
        """Size of the file, or of all files of the folder."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def new(self) -> int | None:
        """Written candidates without a match; those without a position or a response are neither known nor new."""
        if self.known is None:
            return None
        return self.rows - self.known - self.details.get("unmatched", 0) - self.details.get("not_asked", 0)

    def summary(self) -> dict[str, Any]:
        """Return the summary as JSON-able values; ``text`` holds lines for people."""
        lists = []
        for recovered in self.recovered:
            missed = recovered.missed[recovered.missed["fate"] != "not scanned"].drop(columns="rank")
            lists.append(recovered.summary() | {"missed": missed.to_dict("records")})
        summary = {"file": str(self.path), "format": self.format, "bytes": self.bytes, "rows": self.rows, "of": self.of}
        summary |= self.details | ({} if self.known is None else {"known": self.known, "new": self.new})
        text = "\n".join([*self._lines(), *(entry.pop("text") for entry in lists)])
        return summary | ({"lists": lists} if lists else {}) | {"warnings": self.warnings, "text": text}

    def _lines(self) -> list[str]:
        details = self.details
        content = f"{self.rows:,} of {self.of:,} candidates"
        if details.get("morphology"):
            content = f"the morphology of {self.rows:,} galaxies"
        if self.format == "moc":
            content = (
                f"the coverage of {details['objects']:,} scanned objects, {details['square_degrees']:.4g} square "
                f"degrees in cells of order {details['order']} ({details['cell_arcsec']:.3g} arcsec),"
            )
        lines = [f"{content} written to {self.path}" + (" (replacing the old one)" if details.get("replaced") else "")]
        for name, text in (
            ("left_out", "{:,} of them have no position and are left out"),
            ("without_position", "{:,} of them have no position and are not covered"),
            ("like_files", "{:,} ids or names look like files: a dot is written _, a path begins with an apostrophe"),
            ("batches", "folders of images with a manifest.csv, to upload one by one: {:,}"),
        ):
            lines += [text.format(details[name])] if details.get(name) else []
        if "purest" in details:
            lines.append(f"no rank reaches this purity: the maximum is {details['purest']:.2f}")
        if self.known is not None:
            no_position = f", {details['unmatched']:,} have no position" if details.get("unmatched") else ""
            not_queried = f", {details['not_asked']:,} were not queried" if details.get("not_asked") else ""
            lines.append(f"{self.known:,} of them are known, {self.new:,} are new{not_queried}{no_position}")
            if "radius_arcsec" in details:
                lines.append(
                    f"known objects are within {details['radius_arcsec']:g} arcsec of an object of "
                    f"{', '.join(details['matched_with'])}"
                )
        return lines


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    top: int | None = None,
    min_purity: float | None = None,
    known: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    table: str | None = None,
    position_unit: str | None = None,
    crossmatch: str | Sequence[str] = (),
    radius: float | None = None,
    contact: str | None = None,
    order: int | None = None,
    morphology: bool = False,
) -> Exported:
    """Write the candidates of a finished run to `out`, atomically, replacing an earlier export.

    Parameters
    ----------
    run : path
        The run's folder.
    out : path
        The file or folder to write; without `format`, its suffix (.fits .vot .parquet .csv .reg .pdf .moc.fits
        .moc.json) selects the format.
    format : {"fits", "votable", "parquet", "csv", "ds9", "pdf", "moc", "zooniverse", "hats"}, optional
    top : int, optional
        Maximum number of candidates, best first.
    min_purity : float, optional
        Down to the largest rank whose estimated purity is at least this. With `top`, both hold.
    known : path or sequence of paths
        Reference lists (CSV, FITS, VOTable, Parquet ...): each candidate is marked known or new, and the recovered
        fraction of each list is reported.
    table : str, optional
        Name or number of the table, of reference lists with several.
    position_unit : str, optional
        Unit of the positions in the reference lists, as ``hour,deg`` or ``rad``. Default: that of the columns, or
        degrees.
    crossmatch : str or sequence of str
        Services to match in the same way: ``simbad``, ``ned``, ``vizier:TABLE``, separated by commas. Positions of the
        candidates are sent to them. Candidates without a response are marked "not asked".
    radius : float, optional
        Match radius in arcseconds; 3 by default.
    contact : str, optional
        Contact e-mail, sent in the User-Agent; by default the value of ``GALSCAN_CONTACT``.
    order : int, optional
        HEALPix order of a MOC; by default the coarsest whose cells are no wider than the stamps.
    morphology : bool
        Write a table of all fully scored galaxies instead of the candidates: for each answer of the model the expected
        vote fraction, with a 90 % interval.

    Returns
    -------
    Exported
        Summary of the export; also usable as a path: ``astropy.table.Table.read(galscan.export(run, "best.fits"))``.

    Raises
    ------
    InputError
        If the run is not finished, or an option is invalid; nothing is written.
    ConflictError
        If `out` is a folder where a file is needed or the reverse, or one of the run's own files.
    """
    run, out = Path(run), Path(out)
    chosen = _format(out, format)
    known = [known] if isinstance(known, str | os.PathLike) else known
    options = {
        "top": top, "min_purity": min_purity, "known": known or None, "crossmatch": crossmatch or None,
        "table": table, "position_unit": position_unit,
        "radius": radius, "contact": contact, "order": order,
    }  # fmt: skip
    given = {name for name, value in options.items() if value is not None}
    _check_options(chosen, given)
    if morphology:
        if chosen not in morphology_catalog.FORMATS or given - {"contact"}:
            raise InputError(
                f"--morphology writes a table of the whole survey ({', '.join(morphology_catalog.FORMATS)}); omit "
                "other options"
            )
        _check_out(run, out, chosen)
        rows, opened = morphology_catalog.morphology(run)
        details: dict[str, Any] = {"replaced": out.exists(), "morphology": True}
        _write(chosen, rows, out, opened, provenance(opened.info), "MORPHOLOGY")
        return Exported(out, chosen, rows.count, rows.count, details=details)
    candidates, opened = open_candidates(run)
    if min_purity is not None and opened.info.is_similarity_list:
        raise InputError(f"--min-purity {min_purity}: the purity of a similarity list is unknown; limit it with --top")
    if min_purity is not None and (why := opened.purity.get("unknown")):
        raise InputError(
            f"--min-purity {min_purity}: purity is unknown, as {why}; grade a sample (galscan vet {run}, then galscan "
            f"purity {run}), or limit the list with --top"
        )
    rows = select(candidates, top=top, min_purity=min_purity)
    _check_out(run, out, chosen)
    details = {"replaced": out.exists()}
    if chosen == "moc":
        details |= coverage.moc(opened, out, order, provenance(opened.info, opened.purity))
        return Exported(out, chosen, 0, candidates.count, details=details)
    matched: dict[str, Any] = {}
    if known or crossmatch:
        rows, matches, matched = _match(
            opened, rows, top, [Catalog(path, table, position_unit) for path in known], crossmatch, radius, contact
        )
        details |= matches
    details |= _write(chosen, rows, out, opened, provenance(opened.info, opened.purity))
    if not rows.count and min_purity is not None:
        details["purest"] = max_purity(candidates)
    return Exported(out, chosen, rows.count, candidates.count, details=details, **matched)


def _match(
    run: Run, rows: TableStream, top: int | None, known: Sequence[Catalog],
    services: str | Sequence[str], radius: float | None, contact: str | None,
) -> tuple[TableStream, dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Match candidates with lists and services; return annotated rows, details and other fields of `Exported`.

    All input is checked before the first query.
    """
    radius = check_radius(RADIUS if radius is None else radius)
    names = external_catalogs.parse_services(services) if services else []
    external_catalogs.check_count(names, rows.count, top)
    lists = [read_known(path) for path in known]
    warnings = [warning for catalog in lists for warning in catalog.warnings]
    recovered = []
    scores = run.tables / "scores"
    if scores.is_dir():
        recovered = [crossmatch.recovered(run.path, catalog, radius) for catalog in lists]
    elif lists:
        warnings.append(f"{scores} is missing, so the scanned fraction of the lists is unknown")
    positions = crossmatch.positions(rows) if names else []
    results = [external_catalogs.query_service(name, positions, radius, home.contact(contact)) for name in names]
    for result in results:
        if missing := sum(position not in result.matches for position in positions):
            warnings.append(
                f"{result.title}: {missing:,} candidates were not queried ({result.error}), and count as neither known "
                "nor new; responses are cached, run the same command again to query the rest"
            )
    rows = crossmatch.annotate(rows, lists, radius, results)
    counts = crossmatch.count(rows)
    details: dict[str, Any] = {"unmatched": counts["unmatched"]}
    if names:
        details |= {"not_asked": counts["not_asked"], "radius_arcsec": radius}
        details["matched_with"] = [*(catalog.title for catalog in lists), *names]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return rows, details, {"known": counts["known"], "recovered": recovered, "warnings": warnings}


def _write(
    chosen: str, rows: TableStream, out: Path, run: Run, facts: dict[str, Any], name: str = "CANDIDATES"
) -> dict[str, Any]:
    """Write one format; return its details."""
    if chosen == "fits":
        columns.write_fits(rows, out, facts, run.info.answers, name)
        return {}
    if chosen in ("pdf", "zooniverse"):
        return {"pdf": pdf, "zooniverse": zooniverse}[chosen](rows, out, run)
    writers = {
        "votable": tables.votable, "parquet": tables.parquet, "csv": tables.csv, "ds9": tables.ds9, "hats": hats,
    }  # fmt: skip
    return writers[chosen](rows, out, facts) or {}


def _format(out: Path, name: str | None) -> str:
    if name is None:
        for suffix in ("".join(out.suffixes[-2:]).lower(), out.suffix.lower()):
            if suffix in SUFFIXES:
                return SUFFIXES[suffix]
        raise InputError(
            f"{out}: no format has the suffix '{out.suffix}'{nearest(out.suffix, SUFFIXES)}; or give --format"
        )
    if name not in FORMATS:
        raise InputError(f"format '{name}' is unknown{nearest(name, FORMATS)}")
    return name


def _check_options(chosen: str, given: set[str]) -> None:
    """Raise `InputError` for options that a format does not have."""
    if chosen == "moc" and (unused := sorted(given - {"order"})):
        raise InputError(
            f"--{unused[0].replace('_', '-')} cannot be used with a MOC, which covers all scanned objects, not the "
            "candidates; omit it"
        )
    if chosen != "moc" and "order" in given:
        raise InputError("--order is for a MOC; write one with --out scanned.moc.fits, or --format moc")
    if "radius" in given and not given & {"known", "crossmatch"}:
        raise InputError("--radius needs known objects to match; add --known FILE, or --crossmatch simbad")
    if (about := sorted(given & {"table", "position_unit"})) and "known" not in given:
        raise InputError(
            f"--{about[0].replace('_', '-')} is about lists of known objects; add --known FILE, or omit it"
        )
    if "contact" in given and "crossmatch" not in given:
        raise InputError("--contact is sent to the services of --crossmatch; name one, or omit it")


def _check_out(run: Path, out: Path, chosen: str) -> None:
    """Raise `ConflictError` for paths that cannot be written without destroying something else."""
    if out.is_dir() and chosen not in FOLDERS:
        raise ConflictError(f"{out} is a folder; name a file, e.g. {out / 'candidates.fits'}")
    if out.is_file() and chosen in FOLDERS:
        raise ConflictError(f"{out} is a file, but {chosen} writes a folder; choose another name")
    target, home = out.resolve(), run.resolve()
    if target == home or (target.is_relative_to(home) and target.relative_to(home).parts[0] in _RUN_FILES):
        raise ConflictError(f"{out} is a file of the run itself; choose another name")
