"""Candidates as a HATS catalogue, Parquet partitioned by HEALPix pixel, for crossmatches with large surveys in LSDB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from galscan.candidates.table_stream import TableStream, has_position
from galscan.core.errors import InputError
from galscan.core.staging import atomic_folder
from galscan.core.version import __version__
from galscan.scanning.cluster import import_dask

_MARKER = "hats.properties"
_ROWS = 100_000  # per partition


def hats(rows: TableStream, out: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Write the folder of a HATS catalogue, replacing that of an earlier export. All rows are held in memory.

    Candidates without a position, which HATS cannot hold, are left out; their number is returned.
    """
    import_dask()  # which lsdb imports
    try:
        import lsdb
    except ImportError:
        raise InputError("HATS needs lsdb, which is not installed: pip install 'galscan[lsdb]'") from None
    schema = rows.schema.remove_metadata()
    pieces = [piece.filter(pa.array(has_position(piece))).cast(schema) for piece in rows]
    table = pa.concat_tables([schema.empty_table(), *pieces])
    if not len(table):
        raise InputError(f"none of the {rows.count:,} candidates has a position, which HATS needs; use another format")
    catalog = lsdb.from_dataframe(
        table.to_pandas(), ra_column="ra", dec_column="dec", partition_rows=_ROWS, margin_threshold=None,
        catalog_name=out.name, schema=schema,
    )  # fmt: skip
    with atomic_folder(out, _MARKER) as folder:
        catalog.write_catalog(
            folder, catalog_name=out.name, as_collection=False, overwrite=True, progress_bar=False,
            addl_hats_properties={"hats_creator": f"galscan {__version__}"}
            | {f"galscan_{name}": str(provenance[name]) for name in ("target", "model", "fingerprint")},
        )  # fmt: skip
    return {"partitions": len(catalog.get_healpix_pixels()), "left_out": rows.count - len(table)}
