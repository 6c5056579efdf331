"""A run's candidates in the formats astronomers' tools read: one door for all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.candidates import columns
from galscan.candidates.export import tables as formats
from galscan.candidates.run import GRADED, open_candidates, provenance, purest, select
from galscan.candidates.table_stream import TableStream
from galscan.core import home
from galscan.core.errors import ConflictError, InputError, nearest
from galscan.scanning.run import is_like, tables

if TYPE_CHECKING:
    from galscan.candidates.crossmatch import Recovered

SUFFIXES = {
    ".fits": "fits",
    ".fit": "fits",
    ".vot": "votable",
    ".votable": "votable",
    ".xml": "votable",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".reg": "ds9",
    ".pdf": "pdf",
    ".moc.fits": "moc",
    ".moc.json": "moc",
}
FORMATS = ("fits", "votable", "parquet", "csv", "ds9", "pdf", "moc", "zooniverse", "hats")
FOLDERS = ("zooniverse", "hats")
_OWN = {
    "run.json", "candidates.parquet", "candidates.fits", "contact.png", "report.html", "ledger.jsonl", "purity.json",
    f"{GRADED}.parquet", f"{GRADED}.fits", "grades.sqlite", "scores", "quarantine", "embeddings", "vetting",
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What was written; opens as its path does.

    Attributes
    ----------
    path : Path
    format : str
    rows, of : int
        Candidates written, and in the run; of a MOC, 0 and the candidates in the run.
    known : int, optional
        Of those written, how many are in a reference list.
    recovered : list of Recovered
        What became of the objects of each list.
    told : dict
        What else there is to say of the format: order of the MOC, rows left out, batches.
    warnings : list of str
        What may be wrong with a reference list.
    """

    path: Path
    format: str
    rows: int
    of: int
    known: int | None = None
    recovered: list[Recovered] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
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
        """Of those written, how many are in no list; what has no position or was not asked is neither known nor new."""
        if self.known is None:
            return None
        return self.rows - self.known - int(self.told.get("unmatched", 0)) - int(self.told.get("not_asked", 0))

    def summary(self) -> dict[str, Any]:
        """Return what a script wants to know, JSON-able; ``text`` is the same for people."""
        lists = []
        for one in self.recovered:
            missed = one.missed[one.missed["fate"] != "not scanned"].drop(columns="rank")
            lists.append(one.summary() | {"missed": missed.to_dict("records")})
        told = {"file": str(self.path), "format": self.format, "bytes": self.bytes, "rows": self.rows, "of": self.of}
        told |= self.told | ({} if self.known is None else {"known": self.known, "new": self.new})
        text = "\n".join([*self._lines(), *(one.pop("text") for one in lists)])
        return told | ({"lists": lists} if lists else {}) | {"warnings": self.warnings, "text": text}

    def _lines(self) -> list[str]:
        told = self.told
        what = f"{self.rows:,} of {self.of:,} candidates"
        if told.get("morphology"):
            what = f"the morphology of {self.rows:,} galaxies"
        if self.format == "moc":
            what = (
                f"the sky of {told['objects']:,} scanned objects, {told['square_degrees']:.4g} square degrees in cells "
                f"of order {told['order']} ({told['cell_arcsec']:.3g} arcsec),"
            )
        lines = [f"{what} written to {self.path}" + (" (the old one was replaced)" if told.get("replaced") else "")]
        if told.get("left_out"):
            lines.append(f"{told['left_out']:,} of them have no position and are left out")
        if told.get("without_position"):
            lines.append(f"{told['without_position']:,} of them have no position and are not covered")
        if told.get("batches"):
            lines.append(f"folders of pictures with their manifest.csv, each to upload at once: {told['batches']:,}")
        if "purest" in told:
            lines.append(f"none is pure enough: the purest rank has {told['purest']:.2f}")
        if self.known is not None:
            nowhere = f", {told['unmatched']:,} have no position" if told.get("unmatched") else ""
            open_ = f", {told['not_asked']:,} were not asked" if told.get("not_asked") else ""
            lines.append(f"{self.known:,} of them are known, {self.new:,} are new{open_}{nowhere}")
            if "radius_arcsec" in told:
                lines.append(
                    f"known is what lies within {told['radius_arcsec']:g} arcsec of an object of "
                    f"{', '.join(told['matched_with'])}"
                )
        return lines


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    top: int | None = None,
    min_purity: float | None = None,
    known: Sequence[str | os.PathLike[str]] = (),
    crossmatch: str | Sequence[str] = (),
    radius: float | None = None,
    contact: str | None = None,
    order: int | None = None,
    morphology: bool = False,
) -> Exported:
    """Write the candidates of a finished run to `out`, atomically; a file that was there is replaced.

    Parameters
    ----------
    format : str, optional
        One of `FORMATS`; from the suffix of `out` when not given.
    top : int, optional
        At most so many, best first.
    min_purity : float, optional
        Down to the largest rank whose purity is at least this. With `top`, both hold.
    known : sequence of paths
        Reference lists: each candidate is told known or new (`crossmatch.annotate`), and of each list what was found
        again (`crossmatch.recovered`).
    crossmatch : str or sequence of str
        Services to ask as well: ``simbad``, ``ned``, ``vizier:TABLE``, with commas between.
    radius : float, optional
        Within which a position is the same, in arcseconds; 3 when not given.
    contact : str, optional
        Who asks, told to the services; default: what ``GALSCAN_CONTACT`` says.
    order : int, optional
        Of a MOC; the coarsest whose cells are no wider than the stamps when not given.
    morphology : bool
        Write the morphology of all galaxies instead (`galscan.candidates.morphology`).

    Raises
    ------
    NotFoundError
        If there is no run.
    InputError
        If the run is not finished, the format unknown, an option out of range or of another format, or an extra is
        missing.
    ConflictError
        If `out` is another kind of thing, or one of the run's own files.
    """
    run, out = Path(run), Path(out)
    chosen = _format(out, format)
    _check_options(
        chosen, out, top=top, min_purity=min_purity, known=known or None, crossmatch=crossmatch or None, radius=radius,
        contact=contact, order=order,
    )  # fmt: skip
    if morphology:
        from galscan.candidates import morphology as catalog

        if chosen not in catalog.FORMATS or not (top is min_purity is radius is order is None) or known or crossmatch:
            raise InputError(
                f"--morphology is a table of the whole survey ({', '.join(catalog.FORMATS)}), without other options"
            )
        _check_place(run, out, chosen)
        rows, info = catalog.morphology(run)
        told: dict[str, Any] = {"replaced": out.exists(), "morphology": True}
        _write(chosen, rows, out, info, provenance(info), "MORPHOLOGY")
        return Exported(out, chosen, rows.count, rows.count, told=told)
    every, info = open_candidates(run)
    if min_purity is not None and is_like(info):
        raise InputError(
            f"--min-purity {min_purity}: how pure a list by similarity is, is not known; cut it with --top"
        )
    if min_purity is not None and (why := (info.get("purity") or {}).get("unknown")):
        raise InputError(
            f"--min-purity {min_purity}: purity is unknown, as {why}; grade a sample (galscan vet {run}, then galscan "
            f"purity {run}), or cut the list with --top"
        )
    rows = select(every, top=top, min_purity=min_purity)
    _check_place(run, out, chosen)
    facts = provenance(info)
    if chosen == "moc":
        from galscan.candidates.coverage import moc

        replaced = out.exists()
        return Exported(out, chosen, 0, every.count, told={"replaced": replaced} | moc(run, out, info, order, facts))
    matched = _Matched(rows)
    if known or crossmatch:
        matched = _match(run, info, rows, top, known, crossmatch, radius, contact)
    told = {"replaced": out.exists()} | _write(chosen, matched.rows, out, info, facts) | matched.told
    if not rows.count and min_purity is not None:
        told["purest"] = purest(every)
    return Exported(out, chosen, rows.count, every.count, matched.known, matched.recovered, told, matched.warnings)


@dataclass
class _Matched:
    """Rows with what is known of them, and what is told of that."""

    rows: TableStream
    known: int | None = None
    recovered: list[Recovered] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def _match(
    run: Path,
    info: Mapping[str, Any],
    rows: TableStream,
    top: int | None,
    known: Sequence[str | os.PathLike[str]],
    crossmatch: str | Sequence[str],
    radius: float | None,
    contact: str | None,
) -> _Matched:
    """Compare candidates with lists and services; all that may be refused is, before anybody is asked."""
    from galscan.candidates import crossmatch as matching
    from galscan.candidates import external_catalogs

    radius = matching.check_radius(matching.RADIUS if radius is None else radius)
    names = external_catalogs.parse_services(crossmatch) if crossmatch else []
    external_catalogs.check_count(names, rows.count, top)
    lists = [matching.read_known(path) for path in known]
    warnings = [warning for one in lists for warning in one.warnings]
    found: list[Recovered] = []
    scores = tables(run, info) / "scores"
    if scores.is_dir():
        found = [matching.recovered(run, one, radius) for one in lists]
    elif lists:
        warnings.append(f"{scores} has gone: how much of the lists was scanned is not known")
    places = matching.places(rows) if names else []
    asked = [external_catalogs.ask(name, places, radius, home.contact(contact)) for name in names]
    warnings += [
        external_catalogs.tell(one, left) for one in asked if (left := sum(p not in one.answers for p in places))
    ]
    rows = matching.annotate(rows, lists, radius, asked)
    told: dict[str, Any] = {"unmatched": formats.without_coordinates(rows)}
    if names:
        told |= {"not_asked": matching.count_not_asked(rows), "radius_arcsec": radius}
        told["matched_with"] = [*(one.title for one in lists), *names]
    return _Matched(rows, matching.count_known(rows), found, told, warnings)


def _write(
    chosen: str, rows: TableStream, out: Path, info: dict[str, Any], facts: dict[str, Any], name: str = "CANDIDATES"
) -> dict[str, Any]:
    """Write one format; what a format needs is loaded with it."""
    if chosen == "fits":
        columns.write_fits(rows, out, facts, info.get("answers", ()), name)
    elif chosen == "pdf":
        from galscan.candidates.export.pdf import pdf

        return pdf(rows, out, info)
    elif chosen == "zooniverse":
        from galscan.candidates.export.zooniverse import zooniverse

        return zooniverse(rows, out, info)
    elif chosen == "hats":
        from galscan.candidates.export.hats import hats

        return hats(rows, out, facts)
    else:
        {"votable": formats.votable, "parquet": formats.parquet, "csv": formats.csv, "ds9": formats.ds9}[chosen](
            rows, out, facts
        )
        if chosen == "ds9":
            return {"left_out": formats.without_coordinates(rows)}
    return {}


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


def _check_options(chosen: str, out: Path, **options: Any) -> None:
    """Refuse options that mean nothing for a format."""
    given = {name for name, value in options.items() if value is not None}
    if chosen == "moc" and (idle := sorted(given - {"order"})):
        raise InputError(
            f"--{idle[0].replace('_', '-')} says nothing of a MOC: it covers all that was scanned, not the candidates"
        )
    if chosen != "moc" and "order" in given:
        raise InputError("--order is of a MOC; write one with --out scanned.moc.fits, or --format moc")
    if "radius" in given and not given & {"known", "crossmatch"}:
        raise InputError(
            "--radius is how near to a known object counts as it; name a list with --known FILE, or --crossmatch simbad"
        )
    if "contact" in given and "crossmatch" not in given:
        raise InputError("--contact is told to the services of --crossmatch; name one, or leave it out")


def _check_place(run: Path, out: Path, chosen: str) -> None:
    """Refuse places that belong to something else."""
    if out.is_dir() and chosen not in FOLDERS:
        raise ConflictError(f"{out} is a folder; name a file, e.g. {out / 'candidates.fits'}")
    if out.is_file() and chosen in FOLDERS:
        raise ConflictError(f"{out} is a file; {chosen} writes a folder, name another")
    place, home = out.resolve(), run.resolve()
    if place == home or (place.is_relative_to(home) and place.relative_to(home).parts[0] in _OWN):
        raise ConflictError(f"{out} belongs to the run itself; export to another name")
