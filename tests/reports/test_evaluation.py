from __future__ import annotations

from galscan.reports import evaluation


def test_what_too_few_galaxies_leave_open_is_a_dash():
    assert evaluation._at({"light": {"positive": {"real": None}}}, "light/positive/real/measured") is None
    assert evaluation._fraction({"fraction": None}) == evaluation._figure(None) == evaluation._spread(None) == "–"


def test_figures_are_written_for_people():
    assert evaluation._fraction({"fraction": 0.25, "low": 0.1, "high": 0.5}) == "25.0% (10.0% to 50.0%)"
    assert evaluation._figure(12345) == "12,345" and evaluation._figure(0.12345) == "0.123"
    assert evaluation._spread({"mean": 0.5, "std": 0.25}) == "0.500 ± 0.250"


def share(count: int, n: int) -> dict:
    return {"n": n, "count": count, "fraction": count / n if n else None, "low": 0.0, "high": 1.0}


def evaluation_of(hosts: int, drawn: int) -> dict:
    """Return a result of an evaluation with only the entries that the headline and the first tables need."""
    sets = {"synthetic": (20, 40), "real": (6, 10), "hosts": (1 if hosts else 0, hosts)}
    spread = {"n": 9, "median": -1.5, "low": -2.0, "high": -1.0}
    nothing = {"n": 0, "median": None, "low": None, "high": None}
    return {
        "acceptance": {w: {"at_zero": share(*c), "at_median": share(*c)} for w, c in sets.items()},
        "counts": {
            "hosts": {"all": hosts, "trained_on": 7}, "origin": {"generated": drawn, "injected": 40 - drawn},
            "training": {"all": 90, "positive": 9, "negative": 60},
        },
        "feature": {
            "name": "dust_lane",
            "galaxies": {w: {"n": 40, "host_measured": 30, "feature_measured": 25} for w in sets},
            "quantities": {
                "log_depth": {"ks": 0.25, "p": 0.5, "synthetic": spread, "real": spread},
                "reddening": {"ks": None, "p": None, "synthetic": spread, "real": nothing},
            },
        } if hosts else None,
        "copies": {"pixels": {"synthetic": {"below_p1": share(2 if drawn else 0, drawn)}}},
        "fidelity": {"dimensions": {"kid": 128, "fid": 16}, **dict.fromkeys(("positive", "negative"))},
        "diversity": dict.fromkeys(("positive", "negative")), "light": dict.fromkeys(("positive", "negative")),
        "adherence": dict.fromkeys(f"{w}_{k}" for w in ("synthetic", "real") for k in ("positive", "negative")),
        "filter": dict.fromkeys(("synthetic", "real")),
    }  # fmt: skip


def test_injected_ones_are_compared_with_their_hosts():
    text = evaluation.summary(evaluation_of(hosts=30, drawn=0))
    first, *lines = text.split("\n")
    assert first == (
        "The reference classifier accepts 50% of 40 synthetic positives and 60% of 10 held-out real positives; it "
        "accepts 3% of the 30 unchanged hosts."
    )
    assert "unchanged hosts" in lines[0] and lines[1].split()[-4:] == ["3.3%", "(0.0%", "to", "100.0%)"]
    assert "−1.50 (−2.00 to −1.00)" in text and "0.25 (p = 0.5)" in text and "25 of 40" in text
    assert "copies" not in text


def test_copies_are_among_whole_images_only():
    result = evaluation_of(hosts=0, drawn=40)
    result["copies"] |= {
        "features": None,
        "pixels": {**dict.fromkeys(("min_ratio", "real")), **result["copies"]["pixels"]},
    }
    result["copies"]["pixels"]["synthetic"]["min_ratio"] = 0.5
    text = evaluation.summary(result)
    assert "2 of 40 whole images are near copies" in text and "Are they copies?" in text and "hosts" not in text
