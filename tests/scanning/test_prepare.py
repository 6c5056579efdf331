"""Networks converted where that pays, and a first look that is cut by what did not teach it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from galscan.core.errors import GalscanError, InputError
from galscan.models.ensemble import load_scorer
from galscan.models.model import PREFILTER_FILE
from galscan.scanning import partitions, prepare, worker
from galscan.scanning.plan import make_plan
from galscan.scanning.selection import Selection
from tests.helpers import tiny_bundle, tiny_store
from tests.scanning.test_plan import bundle, fake_store
from tests.small_scans import coarse_scorer, noisy, planned


@pytest.fixture(autouse=True)
def by_brightness(monkeypatch):
    monkeypatch.setattr(worker, "load_scorer", lambda job: coarse_scorer)


@pytest.fixture
def untaught(tmp_path):
    """The folder of a model whose first look has learnt nothing."""
    from galscan.models.prefilter import Prefilter, TinyNet, save_prefilter

    (tmp_path / "model").mkdir()
    save_prefilter(Prefilter(TinyNet()), tmp_path / "model" / PREFILTER_FILE)
    return tmp_path / "model"


def test_the_cut_is_set_by_what_did_not_teach_and_kept(client, tmp_path, monkeypatch, untaught):
    from galscan.models.prefilter import load_prefilter, may_train_prefilter

    store = tiny_store(tmp_path / "s.zarr", 6000, 8)
    seen = []
    monkeypatch.setattr(worker, "_prefilter", lambda job: (lambda images: seen.append(images) or noisy(images), 0.0))
    plan = planned([store], tmp_path / "run", cascade=True, top=30, model=untaught)
    (path,) = prepare.prefilters(plan, client)
    look = load_prefilter(path)
    taught = may_train_prefilter(store.column("id"))
    assert 0.45 < taught.mean() < 0.55 and look.sample == (~taught).sum()  # all there are: fewer than it asks for
    for image in np.concatenate(seen)[:50]:
        assert not taught[(store.images() == image).all(axis=(1, 2, 3))].any()
    best = coarse_scorer(store.images()).score[:, 0]
    passed = noisy(store.images())[:, 0] >= look.cut
    assert passed[np.argsort(-best)[:30]].all() and look.passes == pytest.approx(passed.mean(), abs=0.05) and look.pays
    before = path.read_bytes()
    assert prepare.prefilters(plan, client)[0].read_bytes() == before


def test_the_share_of_candidates_is_that_of_the_chosen(client, tmp_path, monkeypatch, untaught):
    """Of a survey of which a third is chosen, the best make three times as large a share."""
    from galscan.models import prefilter

    shares = []
    real = prefilter.set_threshold
    monkeypatch.setattr(prefilter, "set_threshold", lambda *args: (shares.append(args[-1]), real(*args))[1])
    monkeypatch.setattr(worker, "_prefilter", lambda job: (noisy, 0.0))
    store = tiny_store(tmp_path / "s.zarr", 9000, 8)
    for name, where in (("all", ""), ("third", "dec > 20")):
        chosen = Selection(where=where)
        plan = planned([store], tmp_path / name, top=60, selection=chosen, cascade=True, model=untaught)
        prepare.prefilters(plan, client)
    chosen = float((store.column("dec") > 20).mean())
    assert shares[0] == pytest.approx(60 / 9000, rel=0.1)
    assert shares[1] == pytest.approx(60 / 9000 / chosen, rel=0.15) and 0.2 < chosen < 0.5


def test_networks_are_converted_where_that_pays(tmp_path, monkeypatch):
    from galscan.models.model import open_model
    from galscan.models.prefilter import Prefilter, TinyNet, save_prefilter

    pytest.importorskip("openvino", reason="needs the extra 'fast'")
    store = tiny_store(tmp_path / "s.zarr", 300, 32)
    (tmp_path / "m").mkdir()
    save_prefilter(Prefilter(TinyNet()), tmp_path / "m" / PREFILTER_FILE)
    plan = make_plan([store], [tiny_bundle(tmp_path / "m")], out=tmp_path / "run", precision="fp32", cascade=True)
    plan.out.mkdir()
    prepare.convert_networks(plan, plan.out)
    assert not partitions.Job.of(plan).converted
    monkeypatch.setattr(prepare, "CONVERTED", 300)
    prepare.convert_networks(plan, plan.out)
    job = partitions.Job.of(plan, [plan.out / PREFILTER_FILE])
    assert job.converted and sorted(p.name for p in plan.out.iterdir()) == [
        "network.bin", "network.xml", "prefilter.bin", "prefilter.xml",
    ]  # fmt: skip
    monkeypatch.undo()
    save_prefilter(Prefilter(TinyNet(), 0.5), plan.out / PREFILTER_FILE)
    images = store.images()
    got, plain = worker.load_scorer(job)(images), load_scorer([open_model(tmp_path / "m")], "cpu", "fp32")(images)
    np.testing.assert_allclose(got.score, plain.score, atol=1e-4)
    assert worker._prefilter(job)[1] == 0.5


def test_what_cannot_be_converted_is_computed_by_pytorch(tmp_path, monkeypatch, capsys):
    from galscan.models import compiled

    def broken(*args):
        raise RuntimeError("no plugin for this processor\nand more")

    monkeypatch.setattr(compiled, "has_openvino", lambda: True)
    monkeypatch.setattr(compiled, "convert", broken)
    monkeypatch.setattr(prepare, "CONVERTED", 300)
    store = tiny_store(tmp_path / "s.zarr", 300, 32)
    plan = make_plan([store], [tiny_bundle(tmp_path / "m")], out=tmp_path / "run", precision="fp32")
    plan.out.mkdir()
    prepare.convert_networks(plan, plan.out)
    assert not partitions.Job.of(plan).converted
    assert capsys.readouterr().err == (
        "OpenVINO cannot be used (RuntimeError: no plugin for this processor); PyTorch is used instead\n"
    )


def test_a_worker_converts_the_networks_and_its_errors_are_raised_here(tmp_path, monkeypatch, client):
    from distributed import KilledWorker

    from galscan.models import compiled

    monkeypatch.setattr(compiled, "has_openvino", lambda: True)
    monkeypatch.setattr(compiled, "convert", lambda network, size, path: path.write_text(str(size)))
    store, model = tiny_store(tmp_path / "s.zarr", 300, 32), tiny_bundle(tmp_path / "m")
    plan = make_plan([store], [model], out=tmp_path / "run")
    plan.out.mkdir()
    prepare.convert_on_worker(plan, client)
    assert not partitions.Job.of(plan).converted  # too few objects
    monkeypatch.setattr(prepare, "CONVERTED", 300)
    prepare.convert_on_worker(plan, client)
    assert partitions.Job.of(plan).converted
    (plan.out / partitions.NETWORK).unlink()
    (model.path / "classifier-0.safetensors").unlink()
    with pytest.raises(InputError, match="classifier-0"):
        prepare.convert_on_worker(plan, client)

    def killed(*args):
        raise KilledWorker("convert", SimpleNamespace(address="tcp://host:1"), 3)

    monkeypatch.setattr(compiled, "has_openvino", killed)
    with pytest.raises(GalscanError, match="--workers"):
        prepare.convert_on_worker(plan, client)


def test_what_cannot_fit_is_refused_with_what_would():
    plan = make_plan([fake_store("a", 10_000_000)], [bundle()], out="/out/run")
    each, needed = prepare.worker_memory(plan), prepare.output_bytes(plan)
    prepare.check_fit(plan, 4, 4 * each, needed)
    with pytest.raises(InputError, match="use --workers 3"):
        prepare.check_fit(plan, 4, 4 * each - 1, needed)
    with pytest.raises(InputError, match="use another machine"):
        prepare.check_fit(plan, 1, each - 1, needed)
    prepare.check_fit(plan, None, 0, needed)  # others do the work
    with pytest.raises(InputError, match=r"/out/run needs .* --limit ([\d,]+)") as error:
        prepare.check_fit(plan, 1, each, needed // 10)
    limit = int(str(error.value).rpartition(" ")[2].replace(",", ""))
    assert 0.2 < limit / plan.objects < 0.4


def test_the_rate_that_was_measured_gives_the_time():
    plan = make_plan([fake_store("a", 900_000)], [bundle()], cascade=False)
    assert "about 15 min at 1,000 objects/s" in prepare.describe(plan, "2 processes", 1000.0)


def test_the_description_says_what_a_person_needs_to_decide():
    plan = make_plan([fake_store("a", 10_000)], [bundle()], device="cpu", out="/out/run")
    text = prepare.describe(plan, "2 processes on this machine")
    for words in (
        "10,000 cutouts of 32 px",
        "30.7 MB",
        "cpu, bf16",
        "2 processes",
        "/out/run",
        "top 1,000",
        "unknown until",
    ):
        assert words in text


def test_memory_and_output_grow_with_what_they_depend_on():
    small = make_plan([fake_store("a", 10_000)], [bundle()])
    large = make_plan([fake_store("a", 1_000_000)], [bundle()])
    assert prepare.worker_memory(small) == prepare.worker_memory(large)  # the promise of bounded memory
    assert prepare.worker_memory(small) < prepare.worker_memory(make_plan([fake_store("a", 9, 128)], [bundle(128)]))
    assert prepare.output_bytes(large) > 50 * prepare.output_bytes(small) / 3


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3.2e12, "3.2 TB"), (4e15, "4,000 TB")]
)
def test_sizes_in_words(count, text):
    assert prepare.size_text(count) == text
