from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.labels.columns import read_answers
from galscan.labels.schema import load_schema, schema_names
from galscan.synthesis.stable_diffusion.captions import captions, parse, wording

ROUND, SPIRAL, EDGE = (
    {"smooth_or_features_a01_smooth": 0.8, "rounded_a17_in_between": 0.7, "odd_a15_no": 1.0},
    {
        "smooth_or_features_a02_features_or_disk": 0.9, "edgeon_a05_no": 0.9, "bar_a07_no_bar": 0.6,
        "spiral_a08_spiral": 0.8, "arms_winding_a28_tight": 0.7, "arms_number_a32_2": 0.9,
        "bulge_prominence_a12_obvious": 0.5, "odd_a15_no": 0.9,
    },
    {
        "smooth_or_features_a02_features_or_disk": 0.9, "edgeon_a04_yes": 0.9, "bulge_shape_a25_rounded": 0.8,
        "odd_a14_yes": 0.9, "odd_feature_a38_dust_lane": 0.8,
    },
)  # fmt: skip


def is_end(name: str, end: str) -> bool:
    return name == end or name.endswith(f"_{end}")


def captions_of(
    schema: str, *galaxies: dict[str, float], survey: str = "sdss", weights: dict[str, float] | None = None
) -> list:
    """Return the captions of galaxies given by the ends of the answers' names; the rest was not asked."""
    chosen = load_schema(schema)
    rows = [[next((v for end, v in g.items() if is_end(name, end)), np.nan) for name in chosen.names] for g in galaxies]
    full = {next(n for n in chosen.names if is_end(n, end)): w for end, w in (weights or {}).items()}
    return captions(chosen, np.array(rows), [survey] * len(rows), full)


def test_votes_are_told_in_the_words_of_the_paper():
    assert captions_of("gz2", ROUND, SPIRAL, EDGE) == [
        "sdss, smooth, in-between round galaxy",
        "sdss, spiral galaxy, obvious bulge prominence, tightly wound spiral arms, 2 spiral arms",
        "sdss, edge-on galaxy, dust lane, with rounded edge-on bulge",
    ]


def test_what_is_insisted_on_stands_in_braces():
    dusty = ROUND | {"odd_a14_yes": 0.8, "odd_a15_no": 0.2, "odd_feature_a38_dust_lane": 0.6}
    (caption,) = captions_of("gz2", dusty, weights={"a38_dust_lane": 1.3})
    assert caption == "sdss, elliptical galaxy, {dust lane:1.3}"  # as in the training set of Ma et al.
    assert parse(caption) == [("sdss, elliptical galaxy, ", 1.0), ("dust lane", 1.3)]
    assert captions_of("gz2", ROUND, weights={"a38_dust_lane": 1.3}) == captions_of(
        "gz2", ROUND
    )  # no answer with that name


def test_votes_that_are_insisted_on_count_more():
    both = ROUND | {
        "odd_a14_yes": 1.0,
        "odd_a15_no": 0.0,
        "odd_feature_a24_merger": 0.6,
        "odd_feature_a38_dust_lane": 0.5,
    }
    assert captions_of("gz2", both)[0].endswith(", merger")
    assert captions_of("gz2", both, weights={"a38_dust_lane": 1.3})[0].endswith(", {dust lane:1.3}")
    assert captions_of("gz2", both)[0].startswith("sdss, smooth")


def test_only_the_way_that_leads_is_told():
    mixed = ROUND | {k: v for k, v in SPIRAL.items() if k != "odd_a15_no"} | {"smooth_or_features_a01_smooth": 0.95}
    assert captions_of("gz2", mixed) == captions_of("gz2", ROUND)


def test_a_question_that_was_not_answered_does_not_hide_the_next():
    unanswered = {k: v for k, v in EDGE.items() if "edgeon" not in k}
    assert captions_of("gz2", unanswered, {}) == ["sdss, dust lane", "sdss"]
    assert captions_of("gz2", ROUND, survey="") == ["smooth, in-between round galaxy"]


def test_numbers_have_phrases_by_their_value():
    galaxy = {"t": -5.0, "visible_dust": 0.25, "inclination": 0.0, "inner_ring": 0.25}
    assert captions_of("efigi", galaxy) == ["sdss, elliptical galaxy, hint of dust, face-on"]
    strong = galaxy | {"visible_dust": 0.75}
    assert captions_of("efigi", strong, weights={"visible_dust": 2.0}) == [
        "sdss, elliptical galaxy, {strong dust lane:2}, face-on"
    ]
    assert captions_of("gz1", {"anticlockwise": 1.0, "clockwise": 0.0}) == ["sdss, spiral galaxy"]
    early = {"early_type": 1.0, "dust_lane": 0.7, "redness": 0.9}
    assert captions_of("simulated", early, survey="Simulated") == ["simulated, early-type galaxy, dust lane, red"]


@pytest.mark.parametrize("name", schema_names())
def test_every_shipped_schema_has_words_and_captions_that_parse(name):
    schema = load_schema(name)
    assert any(a.phrases for a in schema.answers)
    values = np.random.default_rng(0).uniform(schema.low, schema.high, (40, len(schema.names)))
    weights = dict.fromkeys(schema.names, 1.5)
    for caption in captions(schema, values, ["sky"] * 40, weights):
        assert caption.startswith("sky") and all(weight in (1.0, 1.5) for _, weight in parse(caption))


def test_the_wording_changes_with_the_words():
    assert len({wording(load_schema(name)) for name in schema_names()}) == len(schema_names())


@given(
    st.lists(st.tuples(st.text("abc ,:.", min_size=1).filter(str.strip), st.floats(0, 9).map(lambda w: round(w, 3))))
)
def test_what_is_written_is_read(pieces):
    text = "".join(f"{{{words}:{weight:g}}}" for words, weight in pieces)
    assert parse(text) == pieces


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a, {dust lane:1.3", "the brace at character 4 is never closed"),
        ("a, dust lane:1.3}", "the brace at character 17 has no opening brace"),
        ("{a {b:1}:2}", "the brace at character 4 is nested"),
        ("{dust lane}", "the brace at character 1 holds 'dust lane'"),
        ("x{dust lane:much}", "the brace at character 2 holds 'dust lane:much'; write {text:weight}"),
        ("{:1.3}", "holds ':1.3'"), ("{a:-1}", "holds 'a:-1'"), ("{a:nan}", "holds"), ("{a:inf}", "holds"),
        ("{a:1}, {b:1}}", "the brace at character 13 has no opening brace"),
    ],
)  # fmt: skip
def test_wrong_braces_are_told_by_their_place(caption, message):
    with pytest.raises(InputError) as error:
        parse(caption)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("phrase", ['"{x"', '"a, b"', '" "', '[[0.5, "b"], [0.1, "a"]]', '[["a", 1]]'])
def test_a_phrase_that_cannot_be_one_is_refused(tmp_path, phrase):
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "mine"\ntitle = ""\nkind = "attributes"\nreference = ""\n[[answer]]\nname = "a"\nphrase = {phrase}\n'
    )
    with pytest.raises(InputError, match=r"label schema .*mine\.toml: "):
        load_schema(str(path))


def test_a_caption_of_several_answers_needs_known_answers_and_plain_phrases(tmp_path):
    text, line = load_schema("gz2").text, 't08_odd_feature_a38_dust_lane = "dust lane"'
    for wrong, offending in (('t99 = "x"', "t99"), (line.replace("dust lane", "{x"), "{x")):
        path = tmp_path / "mine.toml"
        path.write_text(text.replace(line, wrong))
        with pytest.raises(InputError) as error:
            load_schema(str(path))
        assert offending in str(error.value)
    path.write_text(text.replace(line, "").replace('"elliptical galaxy"', '"smooth"'))
    assert wording(load_schema(str(path))) != wording(load_schema("gz2"))


def test_captions_of_real_votes(real_data):
    schema = load_schema("gz2")
    table = pd.read_csv(real_data / "gz2-tables" / "gz2_stripe82_coadd_votes.csv.gz")
    values = read_answers(schema, table).reindex(columns=schema.names).to_numpy()
    texts = pd.Series(captions(schema, values, ["sdss"] * len(values)))
    assert texts.value_counts().index[0] == "sdss, smooth, in-between round galaxy"
    assert texts.str.contains("dust lane").sum() == 19 and texts.nunique() > 200
