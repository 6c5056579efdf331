"""``galscan send``: the candidates sent by SAMP to TOPCAT, Aladin, ds9 and other tools that are open.

SAMP is the IVOA's protocol for messages between tools on one machine. A hub passes them on; TOPCAT, Aladin and ds9
start one each if there is none. The message names a file, which is written beside the run first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from galscan.candidates.export.formats import SUFFIXES, export
from galscan.core.errors import GalscanError, InputError, first_line, nearest
from galscan.core.version import __version__
from galscan.scanning.run import Run, open_run

FOLDER = "sent"  # of the run, for the files that are sent
TIMEOUT = 30  # seconds until a tool that has not answered is left to load the table on its own
REGIONS = "ds9.set"
# How each kind of message is sent: its type, the format of the file, and its suffix. The first that a tool accepts.
TABLES = {"table.load.votable": ("votable", ".vot"), "table.load.fits": ("fits", ".fits")}
START = "start TOPCAT, Aladin or ds9, which have a hub each, or the hub of astropy alone: samp_hub"


class Recipient(NamedTuple):
    """A tool that a message was sent to.

    Attributes
    ----------
    name : str
        As the tool calls itself.
    mtype : str
        Type of the message.
    loaded : bool
        Whether the tool has confirmed that it has loaded the file; if not, it had not responded after 30 seconds.
    """

    name: str
    mtype: str
    loaded: bool


@dataclass(frozen=True)
class Sent:
    """Summary of what was sent.

    Attributes
    ----------
    files : list of Path
        The files that were written, one per format.
    rows, of : int
        Candidates sent, and in the run.
    recipients : list of Recipient
    """

    files: list[Path]
    rows: int
    of: int
    recipients: list[Recipient]

    def summary(self) -> dict[str, Any]:
        """Return the summary as JSON-able values; ``text`` holds lines for people."""
        lines = [f"{self.rows:,} of {self.of:,} candidates sent"]
        for recipient in self.recipients:
            outcome = "loaded" if recipient.loaded else f"no response within {TIMEOUT} s; it may still be loading"
            lines.append(f"{recipient.name:<12} {outcome}")
        lines += [f"{'file':<12} {file}" for file in self.files]
        return {
            "files": [str(file) for file in self.files], "rows": self.rows, "of": self.of,
            "recipients": [recipient._asdict() for recipient in self.recipients], "text": "\n".join(lines),
        }  # fmt: skip


def send(
    run: str | os.PathLike[str],
    *,
    target: str | None = None,
    top: int | None = None,
    min_purity: float | None = None,
    client: str | None = None,
    ds9: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> Sent:
    """Send the candidates of a finished run by SAMP to the tools that are open, as a table.

    Parameters
    ----------
    run : path
        The run's folder.
    target : str, optional
        The target, for a run of several.
    top : int, optional
        Maximum number of candidates, best first.
    min_purity : float, optional
        Down to the largest rank whose estimated purity is at least this. With `top`, both hold.
    client : str, optional
        Only to the tool of this name, as TOPCAT; default: to all that load tables.
    ds9 : bool
        Send regions to ds9, labelled by rank, instead of a table; ds9 draws them on the image that it shows.
    out : path, optional
        The file to write and send (``.vot``, ``.fits``; with `ds9` ``.reg``); default: in the folder ``sent`` of the
        run.

    Returns
    -------
    Sent

    Raises
    ------
    InputError
        If no hub is running, no tool accepts the message, a tool could not load the file, or an option is invalid.
    """
    opened = open_run(os.fspath(run))
    opened = (opened if target is None else opened.of(target)).require_single_target()
    kinds = {REGIONS: ("ds9", ".reg")} if ds9 else TABLES
    if out is not None:
        kinds = _matching(Path(out), kinds)
    with _connection() as hub:
        recipients = _recipients(hub, list(kinds), client)
        files: dict[str, Path] = {}
        rows, of = 0, 0
        for mtype in dict.fromkeys(recipients.values()):
            form, suffix = kinds[mtype]
            path = Path(out) if out is not None else opened.path / FOLDER / f"candidates{suffix}"
            done = export(opened.path, path, format=form, top=top, min_purity=min_purity)
            files[mtype], rows, of = path.absolute(), done.rows, done.of
            if left := done.details.get("left_out"):
                print(f"warning: {left:,} candidates have no position, and no region", file=sys.stderr, flush=True)
        if not rows:
            raise InputError(f"no candidate of {opened.path} is selected; change --min-purity or --top")
        responses = [_send_to(hub, name, mtype, files[mtype], opened) for name, mtype in recipients.items()]
    return Sent(list(files.values()), rows, of, responses)


def _matching(out: Path, kinds: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return the kinds of messages that a file of this name can be sent with."""
    form = SUFFIXES.get(out.suffix.lower())
    found = {mtype: kind for mtype, kind in kinds.items() if kind[0] == form}
    if not found:
        suffixes = " or ".join(suffix for _, suffix in kinds.values())
        raise InputError(f"--out {out}: what is sent is a file {suffixes}; choose such a name")
    return found


@contextmanager
def _connection() -> Iterator[Any]:
    """Yield a client of the SAMP hub of this user; raise an `InputError` if none is running or it fails."""
    from astropy.samp import SAMPClientError, SAMPHubError, SAMPIntegratedClient, SAMPProxyError, conf

    client = SAMPIntegratedClient(
        name="galscan", description=f"galscan {__version__}, candidates of a scan", callable=False
    )
    with conf.set_temp("use_internet", False):  # else a web server is asked whether this machine is online
        try:
            client.connect()
        except (SAMPHubError, SAMPClientError, SAMPProxyError, OSError) as error:
            why = first_line(error).rstrip(".")
            raise InputError(f"no SAMP hub is running ({why}); {START}") from error
        try:
            yield client
        except GalscanError:
            raise
        except (SAMPHubError, SAMPClientError, SAMPProxyError, OSError) as error:
            raise InputError(f"the SAMP hub has failed ({first_line(error)}); {START}") from error
        finally:
            with suppress(Exception):  # the hub may have ended
                client.disconnect()


def _recipients(hub: Any, mtypes: list[str], wanted: str | None) -> dict[str, str]:
    """Return the message type for each recipient, the first of `mtypes` that it accepts."""
    found: dict[str, str] = {}
    for mtype in mtypes:
        for identifier in sorted(hub.get_subscribed_clients(mtype)):
            found.setdefault(identifier, mtype)
    if wanted is not None:
        names = {identifier: _name(hub, identifier) for identifier in hub.get_registered_clients()}
        chosen = [i for i, name in names.items() if wanted.lower() in (name.lower(), i.lower())]
        if not chosen:
            listed = sorted(set(names.values()))
            raise InputError(f"--client {wanted}: no such tool is connected to the SAMP hub{nearest(wanted, listed)}")
        found = {identifier: found[identifier] for identifier in chosen if identifier in found}
        if not found:
            raise InputError(f"--client {wanted}: {wanted} does not accept {' or '.join(mtypes)}; {_other(mtypes)}")
    if not found:
        raise InputError(f"no tool that accepts {' or '.join(mtypes)} is connected to the SAMP hub; {_other(mtypes)}")
    return found


def _other(mtypes: list[str]) -> str:
    if mtypes == [REGIONS]:
        return "start ds9, or omit --ds9 to send a table"
    return "start TOPCAT or Aladin, or write a file: galscan export RUN --out candidates.vot"


def _name(hub: Any, identifier: str) -> str:
    return str(hub.get_metadata(identifier).get("samp.name", identifier))


def _send_to(hub: Any, identifier: str, mtype: str, file: Path, run: Run) -> Recipient:
    """Send the message to one tool, and wait for its response."""
    from astropy.samp import SAMPProxyError

    name = _name(hub, identifier)
    if mtype == REGIONS:
        parameters = {"cmd": f"regions load {{{file}}}"}
    else:
        title = f"galscan: {run.info.target or 'similar objects'}"
        parameters = {"url": file.as_uri(), "name": title, "table-id": f"galscan-{run.info.fingerprint[:12]}"}
    try:
        response = hub.call_and_wait(identifier, {"samp.mtype": mtype, "samp.params": parameters}, str(TIMEOUT))
    except SAMPProxyError as error:
        if "timeout" not in str(error).lower():
            raise
        return Recipient(name, mtype, False)
    if response.get("samp.status") == "samp.error":
        why = first_line(ValueError(response.get("samp.error", {}).get("samp.errortxt", "no reason is given")))
        hint = "show an image in it first" if mtype == REGIONS else "open the file in it by hand"
        raise InputError(f"{name} could not load {file} ({why}); {hint}")
    return Recipient(name, mtype, True)
