"""The archive services on loopback, with faults on request.

``POST /_behave`` {"modes": [...], "share": 0.05, "seed": 0} makes that fraction
of the responses fail (after the first "well" ones); ``/_mode/MODE/...`` makes one fail; ``POST /_objects`` sets the
objects of SIMBAD, NED and VizieR, ``POST /_files`` the folder of frames; ``GET /_log`` lists requests with their times,
``/_count`` their number.
"""

from __future__ import annotations

import email.utils
import gzip
import io
import json
import random
import re
import socket
import struct
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from tests.services import objects, sky
from tests.services.database import Database

HTML = b"<!DOCTYPE html><html><head><title>Maintenance</title></head><body>We are back soon.</body></html>"
BOMB = gzip.compress(bytes(60_000_000), 1)
MAX_QUERY = 2048  # characters of a query string, as IIS has it


class State:
    """State shared by all requests."""

    def __init__(self, objects: int):
        self.database = Database(objects)
        self.lock = threading.Lock()
        self.files = Path("/nowhere")
        self.log: list[tuple[float, str, str]] = []
        self.known: list[objects.Object] = []
        self.behave({})

    def behave(self, wanted: dict[str, Any]) -> None:
        self.modes, self.share = wanted.get("modes", []), wanted.get("share", 0.0)
        self.random = random.Random(wanted.get("seed", 0))
        self.slow, self.after = wanted.get("slow", 3.0), wanted.get("after", 1)
        self.well = wanted.get("well", 0)

    def mode(self) -> str:
        with self.lock:
            if len(self.log) < self.well:
                return ""
            return self.random.choice(self.modes) if self.modes and self.random.random() < self.share else ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    state: State

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        now = time.monotonic()
        if self.path == "/_count":
            return self.send(str(len(self.state.log)).encode(), "text/plain")
        if self.path == "/_log":
            return self.send(json.dumps(self.state.log).encode(), "application/json")
        mode = self.state.mode()
        if self.path.startswith("/_mode/"):
            mode, _, rest = self.path.removeprefix("/_mode/").partition("/")
            self.path = "/" + rest
        with self.state.lock:
            self.state.log.append((now, self.path, mode))
        if not mode or not self.misbehave(mode):
            self.serve(black=mode == "black")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/_"):
            if self.path == "/_behave":
                self.state.behave(json.loads(body))
                self.state.log.clear()
            elif self.path == "/_files":
                self.state.files = Path(json.loads(body))
            else:
                self.state.known = json.loads(body)
            return self.send(b"{}", "application/json")
        mode = self.state.mode()
        with self.state.lock:
            self.state.log.append((time.monotonic(), self.path, mode))
        if mode and self.misbehave(mode):
            return None
        if self.path == "/viz-bin/votable":
            return self.vizier(body.decode())
        if self.path == "/xmatch/api/v1/sync":
            try:
                return self.send(objects.xmatch(self.state.known, self.headers["Content-Type"], body), "text/csv")
            except (KeyError, ValueError) as error:
                return self.send(f"<VOTABLE><INFO>{error}</INFO></VOTABLE>".encode(), "text/xml", 400)
        return self.send(HTML, "text/html", 404)

    def send(self, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    # ----------------------------------------------------------------------------------------------- faults

    def misbehave(self, mode: str) -> bool:
        """Fail as `mode` says; return whether a response was sent."""
        state = self.state
        if mode in ("429", "500", "503"):
            self.send(HTML, "text/html", int(mode))
        elif mode == "429-after":
            self.send(b"", "text/plain", 429, Retry_After=str(state.after))
        elif mode == "429-date":
            self.send(
                b"", "text/plain", 429, Retry_After=email.utils.formatdate(time.time() + state.after, usegmt=True)
            )
        elif mode == "slow":
            time.sleep(state.slow)
            self.close_connection = True
        elif mode in ("drip", "truncated", "longer", "shorter"):
            self.distort(mode)
        elif mode == "html":
            self.send(HTML, "text/html")
        elif mode in objects.WRONG:
            self.send(objects.WRONG[mode], "text/csv")
        elif mode == "404":
            self.send(HTML, "text/html", 404)
        elif mode == "redirect":
            self.send(b"", "text/html", 302, Location=f"http://localhost:{self.server.server_address[1]}{self.path}")
        elif mode == "around":
            self.send(b"", "text/html", 301, Location=self.path)
        elif mode == "loop":
            self.send(b"", "text/html", 302, Location="/_mode/loop" + self.path)
        elif mode == "bomb":
            self.send(BOMB, "image/jpeg", Content_Encoding="gzip")
        elif mode == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        else:
            return False
        return True

    def distort(self, mode: str) -> None:
        body = sky.jpeg(sky.picture(1.0, 2.0, 128))
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body) + {"longer": 100, "shorter": -100}.get(mode, 0)))
        self.end_headers()
        self.close_connection = True
        if mode == "drip":
            started = time.monotonic()
            for byte in body:
                if time.monotonic() - started > self.state.slow:
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(body[: len(body) // 2] if mode == "truncated" else body)

    # -------------------------------------------------------------------------------------- valid responses

    def serve(self, black: bool) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/tap/sync":
            query = parse_qs(parts.query)["QUERY"][0]
            return self.send(objects.ned(self.state.known, query), "text/csv")
        if len(parts.query) > MAX_QUERY and "cgi-bin" not in parts.path:
            return self.send(HTML.replace(b"Maintenance", b"maxQueryStringLength"), "text/html", 404)
        given = {k: v[0] for k, v in parse_qs(parts.query).items()}
        try:
            if parts.path.startswith(("/sas/", "/cfs/")):
                file = self.state.files / parts.path[1:]
                if file.is_file():
                    return self.send(file.read_bytes(), "application/fits")
            if parts.path.endswith("/ImgCutout/getjpeg"):
                return self.imgcutout(given, black)
            if parts.path.endswith("/x_results.aspx"):
                return self.send(self.state.database.answer(given["cmd"]).encode(), "text/csv")
            if parts.path in ("/viewer/fits-cutout", "/viewer/jpeg-cutout"):
                return self.legacy(given, parts.path.endswith("jpeg-cutout"), black)
            if parts.path == "/hips-image-services/hips2fits":
                return self.hips2fits(given, black)
            if parts.path == "/cgi-bin/ps1filenames.py":
                return self.ps1filenames(given)
            if parts.path == "/cgi-bin/fitscut.cgi":
                return self.fitscut(given, black)
        except (KeyError, ValueError) as error:
            return self.send(f"bad request: {error}".encode(), "text/plain", 400)
        return self.send(HTML, "text/html", 404)

    def picture(self, ra: float, dec: float, pixels: int, black: bool) -> None:
        image = sky.picture(ra, dec, pixels)
        self.send(sky.jpeg(np.zeros_like(image) if black or not sky.covered(ra, dec) else image), "image/jpeg")

    def imgcutout(self, given: dict[str, str], black: bool) -> None:
        ra, dec, width, height = (float(given[k]) for k in ("ra", "dec", "width", "height"))
        if not 64 <= width <= 2048 or width != height:
            raise ValueError("width and height are 64 to 2048")
        if not sky.covered(ra, dec) and sky.code(ra, dec) & 1:  # some releases respond 404, some with a black tile
            return self.send(HTML, "text/html", 404)
        return self.picture(ra, dec, int(width), black)

    def legacy(self, given: dict[str, str], jpeg: bool, black: bool) -> None:
        ra, dec, scale = float(given["ra"]), float(given["dec"]), float(given.get("pixscale", 0.262))
        if given.get("layer", "ls-dr10") not in ("ls-dr10", "ls-dr9", "sdss"):
            return self.send(b"no such layer", "text/plain", 404)
        size = min(int(given.get("size", 256)), 3000)
        if jpeg:
            return self.picture(ra, dec, size, black)
        bands = given.get("bands", "grz")
        return self.send(sky.cube(ra, -80.0 if black else dec, size, scale, bands), "image/fits")

    def hips2fits(self, given: dict[str, str], black: bool) -> None:
        ra, dec, fov = float(given["ra"]), float(given["dec"]), float(given["fov"])
        width, height = int(given["width"]), int(given["height"])
        if given["hips"] not in ("CDS/P/DSS2/color", "CDS/P/SDSS9/r"):
            said = {"title": "Bad Request", "description": f"HiPS {given['hips']} not found"}
            return self.send(json.dumps(said).encode(), "application/json", 400)
        if width != height:
            raise ValueError("square ones only, here")
        if given.get("format", "fits") == "fits":
            covered = sky.covered(ra, dec) and not black
            return self.send(sky.cube(ra, dec, width, fov * 3600 / width, "r", nan=not covered), "image/fits")
        return self.picture(ra, dec, width, black)

    def ps1filenames(self, given: dict[str, str]) -> None:
        ra, dec = float(given["ra"]), float(given["dec"])
        lines = ["projcell subcell ra dec filter mjd type filename shortname badflag"]
        if sky.covered(ra, dec):
            for band in given.get("filters", "grizy"):
                name = f"rings.v3.skycell.1234.056.stk.{band}.unconv.fits"
                lines.append(f"1234 056 {ra} {dec} {band} 0 stack /rings.v3.skycell/1234/056/{name} {name} 0")
        self.send(("\n".join(lines) + "\n").encode(), "text/plain")

    def fitscut(self, given: dict[str, str], black: bool) -> None:
        ra, dec = float(given["ra"]), float(given["dec"])
        if given.get("format") == "fits":  # of one file; output_size has no effect
            band = re.fullmatch(r"/rings\.v3\.skycell/.*\.stk\.([grizy])\.unconv\.fits", given["red"])
            if band is None or "green" in given or "blue" in given:
                raise ValueError("FITS is cut out of one file")
            return self.send(sky.stack(ra, dec, int(given["size"]), band[1], blank=black), "image/fits")
        for colour in ("red", "green", "blue"):
            if not given[colour].startswith("/rings.v3.skycell/"):
                raise ValueError(f"no file {given[colour]}")
        return self.picture(ra, dec, int(given.get("output_size", given["size"])), black)

    def vizier(self, form: str) -> None:
        """Respond to astroquery's form as VizieR does: a VOTable with units and UCDs, positions also in degrees."""
        from astropy.io.votable import from_table
        from astropy.table import Table

        given = dict(line.split("=", 1) for line in form.split("\n") if "=" in line)
        rows = Table({"recno": [1, 2, 3], "NGC": ["N0001", "N0002", "N0007"]})
        rows["RAJ2000"] = ["00 07 16", "00 07 17", "00 08 21"]
        rows["DEJ2000"] = ["+27 42 29", "+27 40 42", "-29 54 54"]
        for name, values in (("_RAJ2000", [1.8167, 1.8208, 2.0875]), ("_DEJ2000", [27.7081, 27.6783, -29.915])):
            rows[name] = values
            rows[name].unit = "deg"
        for name, ucd in {"_RAJ2000": "pos.eq.ra", "_DEJ2000": "pos.eq.dec", "NGC": "meta.id;meta.main"}.items():
            rows[name].meta["ucd"] = ucd
        if given.get("-source") != "VII/118/ngc2000":
            rows = rows[:0]
        tree = from_table(rows)
        for field in tree.resources[0].tables[0].fields:
            field.ucd = rows[field.name].meta.get("ucd")
        tree.resources[0].tables[0].name = "VII/118/ngc2000"
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree.to_xml(buffer)
        self.send(buffer.getvalue(), "text/xml")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:  # clients close connections on purpose
        pass
