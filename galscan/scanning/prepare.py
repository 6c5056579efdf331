"""Before the first part: networks converted, the looks before the full ones cut for this survey, the rate measured."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from galscan.core import progress
from galscan.models.model import FIRST_LOOK
from galscan.scanning import quantised
from galscan.scanning.engine import make_ready, window
from galscan.scanning.partitions import NETWORK, TINY, Job
from galscan.scanning.plan import Plan
from galscan.scanning.worker import Sample, sample_partition, usable_pictures
from galscan.store.layout import CHUNK

if TYPE_CHECKING:
    from distributed import Client

SAMPLE_SHARE, SAMPLE = 0.02, (4_000, 10_000)  # of the survey, and at least and at most so many objects
CONVERTED = 20_000  # objects, from which on to convert the networks takes less time than it saves


def convert_networks(plan: Plan, out: Path) -> None:
    """Convert the networks into `out`, where that pays its seconds: on a CPU with OpenVINO.

    Raises
    ------
    InputError
        If the model is not whole.
    """
    from galscan.models.compiled import convert, has_openvino
    from galscan.models.ensemble import load_ensemble
    from galscan.models.model import open_model
    from galscan.models.prefilter import TinyNets, load_prefilter

    if plan.objects < CONVERTED or (out / NETWORK).is_file() or not has_openvino():
        return
    bundles = [open_model(model.path) for model in plan.models]
    firsts, networks = [bundle.first_look for bundle in bundles], load_ensemble(bundles, plan.embedding > 0)
    try:
        if all(firsts):
            looks = [load_prefilter(path) for path in firsts if path is not None]
            convert(TinyNets([look.network for look in looks]), plan.size, out / TINY)
        convert(networks, plan.size, out / NETWORK)
    except Exception as error:  # of its own kinds: an installation that does not suit this machine
        print(f"OpenVINO cannot be used ({_in_words(error)}); PyTorch computes", file=sys.stderr)


def quantise_networks(plan: Plan, out: Path) -> None:
    """Write the converted networks in 8 bits too, or why that cannot be."""
    from galscan.models.compiled import quantise

    if (out / quantised.NETWORK8).is_file() or quantised.decided(out) is not None:
        return
    if not (out / NETWORK).is_file():
        few = f"of {plan.objects:,} objects, {CONVERTED:,} would pay its preparation"
        return quantised.refuse(out, few if plan.objects < CONVERTED else "the networks were not converted")
    random, pictures, got = np.random.default_rng([plan.seed, quantised.PICTURES]), [], 0
    try:
        for store, rows in _drawn_chunks(plan, random, 20):
            some = usable_pictures(store, rows, Job.of(plan), True)[: quantised.PICTURES // 10]
            pictures.append(some)
            got += len(some)
            if got >= quantised.PICTURES:
                break
        quantise(out / NETWORK, np.concatenate(pictures), out / quantised.NETWORK8)
    except Exception as error:
        quantised.refuse(out, _in_words(error))


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]:.200}"


def prefilters(plan: Plan, client: Client) -> list[Path]:
    """Cut what looks before the full networks for this survey, by one random sample of it.

    The models' first looks: their files are returned, an earlier call's again. An object passes that one of them lets
    pass: what all together let pass is written in each. And the networks in 8 bits, where there are such: what is
    decided of them is left in the run folder.

    Raises
    ------
    InputError
        If the sample is too small.
    GalscanError
        If it cannot be read.
    """
    from galscan.models.prefilter import PAYS, load_prefilter, save_prefilter, set_threshold

    paths = [plan.folder(target) / FIRST_LOOK for target in plan.targets] if plan.cascade else []
    taught = [Path(model.path) / FIRST_LOOK for model in plan.models] if plan.cascade else []
    undecided = plan.int8 and quantised.decided(plan.out) is None
    if all(path.is_file() for path in paths) and not undecided:
        return paths
    random = np.random.default_rng(plan.seed)
    wanted = int(np.clip(plan.objects * SAMPLE_SHARE, *SAMPLE))
    chunks = [
        (part.store, slice(start, min(start + CHUNK, part.stop)))
        for part in plan.parts for start in range(part.start, part.stop, CHUNK)
    ] if plan.objects < 100 * SAMPLE[1] else _drawn_chunks(plan, random, 4 * wanted // CHUNK)  # fmt: skip
    job = replace(Job.of(plan, taught), int8=(-np.inf,) * len(plan.models) if undecided else ())
    make_ready(client, job)
    samples: list[Sample] = []
    read = got = 0
    order = random.permutation(len(chunks))
    with progress.track("first look: sample", wanted, "objects") as advance:
        for start in range(0, len(order), window(client)):
            some = [chunks[k] for k in order[start : start + window(client)]]
            for said in client.gather([client.submit(sample_partition, *chunk, job, pure=False) for chunk in some]):
                samples.append(said)
                advance(min(len(said.full), max(wanted - got, 0)))  # the last chunks bring more than is wanted
                got += len(said.full)
            read += sum(rows.stop - rows.start for _, rows in some)
            if got >= wanted:
                break
    own, own8, full = (np.concatenate(values) for values in zip(*(said[:3] for said in samples), strict=True))
    # Half of what is read may set the cut (`cascade.teaches`); of the rest, the share that is chosen and can be scored.
    share = plan.top / max(plan.objects * 2 * got / max(read, 1), 1)
    looks = [
        set_threshold(load_prefilter(path).network, own[:, k], full[:, k].astype(np.float64), share)
        for k, path in enumerate(taught)
    ]
    passed = np.ones(len(full), bool)
    if looks:
        passed &= (own >= [look.cut for look in looks]).any(1)
    passes = float(passed.mean())
    if undecided:
        seconds8, seconds = np.sum([said.seconds for said in samples], axis=0)
        reached = passed | (passes > PAYS)  # then every object
        quantised.keep(plan.out, quantised.decide(own8, full, reached, share, float(seconds8 / seconds)))
    for look, path in zip(looks, paths, strict=True):
        save_prefilter(replace(look, passes=passes), path)
    return paths


def _drawn_chunks(plan: Plan, random: np.random.Generator, count: int) -> list[tuple[int, slice]]:
    """Return random chunks of a survey so large that not even a list of all is wanted."""
    sizes = np.array([part.count for part in plan.parts])
    drawn = []
    for k in random.choice(len(sizes), count, p=sizes / sizes.sum()):
        part = plan.parts[k]
        start = part.start + CHUNK * int(random.integers(-(-part.count // CHUNK)))
        drawn.append((part.store, slice(start, min(start + CHUNK, part.stop))))
    return drawn


def measured_rate(plan: Plan, seconds: float = 3.0) -> float:
    """Score the first objects here, on one core, for some seconds; return how many a second, reading included."""
    from galscan.core.device import one_thread

    with one_thread(), TemporaryDirectory() as folder:
        convert_networks(plan, Path(folder))
        job, part = replace(Job.of(plan), out=folder, converted=Path(folder, NETWORK).is_file()), plan.parts[0]
        sample_partition(part.store, slice(part.start, min(part.start + 32, part.stop)), job)  # loads the network
        started, done = time.perf_counter(), 0
        for start in range(part.start, part.stop, CHUNK):
            done += len(sample_partition(part.store, slice(start, min(start + CHUNK, part.stop)), job).full)
            if time.perf_counter() - started > seconds:
                break
        return done / (time.perf_counter() - started)
