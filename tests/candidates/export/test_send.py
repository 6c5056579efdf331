"""Candidates sent over real SAMP hubs, astropy's and that of TOPCAT, to clients that read what they get."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from astropy.samp import SAMPHubServer, SAMPIntegratedClient, conf
from astropy.table import Table

from galscan.candidates.export.send import send
from galscan.cli import main
from galscan.core.errors import InputError, NotFoundError
from tests.candidate_tables import candidates, info, write_run


def file_of(url: str) -> str:
    return unquote(urlsplit(url).path)


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch) -> str:
    """Let clients look for a hub at a file of this test only."""
    conf.use_internet = False
    monkeypatch.setenv("SAMP_HUB", f"std-lockurl:{(tmp_path / 'hub').as_uri()}")
    return str(tmp_path / "hub")


@pytest.fixture
def hub(no_hub):
    server = SAMPHubServer(web_profile=False, mode="multiple", addr="127.0.0.1", lockfile=no_hub)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def tool(hub):
    """Return a function that connects a tool: it records the parameters of messages and answers each."""
    clients = []

    def connect(name: str, mtype: str, answer: str = "samp.ok") -> list[dict[str, str]]:
        client, received = SAMPIntegratedClient(name=name, addr="127.0.0.1"), []
        client.connect()
        clients.append(client)

        def receive(private_key, sender_id, msg_id, mtype, params, extra):
            received.append(params)
            client.reply(msg_id, {"samp.status": answer, "samp.result": {}, "samp.error": {"samp.errortxt": "odd"}})

        client.bind_receive_call(mtype, receive)
        return received

    yield connect
    for client in clients:
        client.disconnect()


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "a run", candidates(text=True))


def test_a_tool_gets_the_table_and_reads_it(run, tool, capsys):
    received, fits = tool("topcat", "table.load.votable"), tool("fits reader", "table.load.fits")
    assert main.run(["send", str(run), "--top", "7", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 7 and summary["of"] == 20
    assert {(r["name"], r["loaded"]) for r in summary["recipients"]} == {("topcat", True), ("fits reader", True)}
    assert sorted(summary["files"]) == [str(run / "sent" / f"candidates{end}") for end in (".fits", ".vot")]
    table = Table.read(file_of(received[0]["url"]), format="votable")
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7] and str(table["ra"].unit) == "deg"
    assert Table.read(file_of(fits[0]["url"]))["rank"].tolist() == table["rank"].tolist()
    assert len(received) == len(fits) == 1 and "dustlane" in received[0]["name"]
    assert {p.name for p in (run / "sent").iterdir()} == {"candidates.vot", "candidates.fits"}


def test_one_tool_and_a_file_of_ones_own(run, tool, tmp_path):
    topcat, aladin = tool("topcat", "table.load.votable"), tool("Aladin", "table.load.votable")
    sent = send(run, client="ALADIN", min_purity=0.7, out=tmp_path / "mine.vot")
    assert topcat == [] and [file_of(m["url"]) for m in aladin] == [str(tmp_path / "mine.vot")]
    assert [r.name for r in sent.recipients] == ["Aladin"] and 0 < sent.rows < 20 and not (run / "sent").exists()


def test_regions_for_ds9(run, tool, capsys):
    table, regions = tool("topcat", "table.load.votable"), tool("ds9", "ds9.set")
    sent = send(run, ds9=True)
    assert table == [] and regions == [{"cmd": f"regions load {{{sent.files[0]}}}"}]
    assert sent.files[0].read_text().count("circle(") == 18 and "2 candidates" in capsys.readouterr().err


def test_one_of_several_targets(tmp_path, tool):
    received = tool("topcat", "table.load.votable")
    write_run(tmp_path / "six" / "ring", candidates(5), target="ring")
    several = info(targets=["ring", "merger"], model=["/a", "/b"])
    (tmp_path / "six" / "run.json").write_text(json.dumps(several))
    with pytest.raises(InputError, match="ring"):
        send(tmp_path / "six")
    assert send(tmp_path / "six", target="ring").rows == 5
    assert file_of(received[0]["url"]) == str(tmp_path / "six" / "ring" / "sent" / "candidates.vot")
    with pytest.raises(InputError, match="spiral"):
        send(tmp_path / "six", target="spiral")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"client": "topcad"}, "topcat"),  # the nearest name
        ({"client": "other"}, "other"),  # it loads no tables
        ({"ds9": True}, "--ds9"),
        ({"out": "x.csv"}, ".vot"),
        ({"min_purity": 0.99}, "--min-purity"),
        ({"top": 0}, "--top"),
    ],
)
def test_what_is_refused(run, tool, options, named):
    received = tool("topcat", "table.load.votable")
    tool("other", "coord.pointAt.sky")
    with pytest.raises(InputError, match=named):
        send(run, **options)
    assert received == []


def test_a_tool_that_cannot_load_it(run, tool):
    tool("topcat", "table.load.votable", answer="samp.error")
    with pytest.raises(InputError, match=r"topcat .*odd"):
        send(run)


def test_a_tool_that_is_slow(run, tool, hub, monkeypatch):
    monkeypatch.setattr("galscan.candidates.export.send.TIMEOUT", 1)
    client = SAMPIntegratedClient(name="slow", addr="127.0.0.1")
    client.connect()
    client.bind_receive_call("table.load.votable", lambda *_: None)
    try:
        assert [(r.name, r.loaded) for r in send(run).recipients] == [("slow", False)]
    finally:
        client.disconnect()


def test_no_hub_no_listener_no_run(run, no_hub, tmp_path):
    with pytest.raises(InputError, match="TOPCAT"):
        send(run)
    assert main.run(["send", str(run)]) == 2 and not (run / "sent").exists()
    Path(no_hub).write_text("samp.secret=a\nsamp.hub.xmlrpc.url=http://127.0.0.1:9/\nsamp.profile.version=1.3\n")
    with pytest.raises(InputError, match="TOPCAT"):  # the file of a hub that was killed
        send(run)
    with pytest.raises(NotFoundError):
        send(tmp_path / "nowhere")


def test_nobody_listens(run, hub):
    with pytest.raises(InputError, match=r"table\.load\.votable"):
        send(run)


def test_the_hub_of_topcat_and_stilts(run, no_hub, tmp_path):
    """JSAMP is the hub in TOPCAT and Aladin; STILTS reads tables as TOPCAT does."""
    jsamp, stilts = shutil.which("jsamp"), shutil.which("stilts")
    if not (jsamp and stilts):
        pytest.skip("needs jsamp and stilts (Debian packages of these names)")
    log = tmp_path / "log"
    snooper = None
    hub = subprocess.Popen([jsamp, "hub", "-mode", "no-gui", "-profiles", "std"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: Path(no_hub).is_file() and "xmlrpc.url" in Path(no_hub).read_text())
        with log.open("w") as output:
            command = [jsamp, "snooper", "-clientname", "reader", "-mtype", "table.load.votable"]
            snooper = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        wait_for(lambda: delivered(run))
        wait_for(lambda: "candidates.vot" in log.read_text())
    finally:
        for process in filter(None, (snooper, hub)):
            process.terminate()
            process.wait(20)
    file = run / "sent" / "candidates.vot"
    assert file.as_uri() in log.read_text()
    command = [stilts, "-batch", "tpipe", f"in={file}", "ifmt=votable", "cmd=keepcols 'rank ra'", "ofmt=csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[0] == "rank,ra" and len(lines) == 21 and lines[3].startswith("3,")


def delivered(run: Path) -> bool:
    """Send the candidates; False while no tool has registered with the hub."""
    try:
        return [r.name for r in send(run).recipients] == ["reader"]
    except InputError as error:
        print(error, file=sys.stderr)
        return False


def wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)
