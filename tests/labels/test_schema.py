"""Label schemas: shipped ones load, and invalid ones raise a one-line error."""

from __future__ import annotations

import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.labels.schema import install_schema, is_shipped, load_schema, schema_names
from tests.helpers import OWN_SCHEMA


def test_every_shipped_schema_loads():
    assert {"gz2", "gz_decals", "gz10", "efigi", "gz1", "gz2_leading", "simulated"} <= set(schema_names())
    for name in schema_names():
        schema = load_schema(name)
        assert schema.name == name and schema.title and schema.reference
        assert len(set(schema.names)) == len(schema.names) == len(schema.low)
        assert (schema.low < schema.high).all()
    assert len(load_schema("gz2").tasks) == 11 and len(load_schema("gz2").names) == 37
    assert len(load_schema("efigi").names) == 17  # the type and 16 attributes


def test_unknown_schema():
    with pytest.raises(NotFoundError, match="did you mean 'efigi'"):
        load_schema("efigy")
    with pytest.raises(NotFoundError, match="does not exist"):
        load_schema("none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "none.toml|bad"),
        ('name = "x"\ntitle = "x"\nkind = "x"\nreference = "x"', "kind 'x'"),
        ('name = "x"\ntitle = "x"\nkind = "attributes"', "lacks the key 'reference'"),
        ('name="x"\ntitle="x"\nkind="attributes"\nreference="x"\n[[answer]]\nname="a"\nhigth=2', "higth"),
        (OWN_SCHEMA.replace('"mine"', "3"), "name = 3 must be a string"),
        (OWN_SCHEMA.replace('"my notebook"', "[1]"), r"reference = \[1\] must be a string"),
        (OWN_SCHEMA.replace("low = 1", 'low = "one"'), "range of answer 'odd' is 'one' to 9"),
        (OWN_SCHEMA.replace("low = 1", "low = 9"), "is 9 to 9"),
        (OWN_SCHEMA.replace("low = 1", "low = nan"), "is nan to 9"),
        (OWN_SCHEMA.replace('"odd"', "7"), "answer 7 is not a string"),
        (OWN_SCHEMA + '[[answer]]\nname = "odd"', "'odd' is not a string, or occurs twice"),
        (OWN_SCHEMA.partition("[[")[0] + "answer = []", "no answers"),
        (OWN_SCHEMA.partition("[[")[0] + "answer = 5", "bad.toml"),
    ],
)
def test_a_broken_schema_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_schema(str(path))


def test_an_installed_schema_is_loaded_by_name(tmp_path, galscan_home):
    path = tmp_path / "any name.toml"
    path.write_text(OWN_SCHEMA)
    with pytest.raises(NotFoundError, match="'mine'"):
        load_schema("mine")
    assert install_schema("gz2") == load_schema("gz2") and not (galscan_home / "labels").exists()
    for _ in range(2):
        assert install_schema(str(path)).name == "mine"
    path.unlink()
    assert load_schema("mine").names == ["odd"] and "mine" in schema_names() and not is_shipped("mine")
    with pytest.raises(NotFoundError, match="'mine'"):
        load_schema("mime")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("high = 9", "high = 5", "labels/mine.toml"), ('"mine"', '"efigi"', "'efigi'"), ('"mine"', '"../mine"', "1-64")],
)
def test_only_one_schema_of_a_name_is_installed(tmp_path, galscan_home, old, new, message):
    path = tmp_path / "x.toml"
    path.write_text(OWN_SCHEMA)
    install_schema(str(path))
    path.write_text(OWN_SCHEMA.replace(old, new))
    with pytest.raises(InputError, match=message):
        install_schema(str(path))
    assert load_schema("mine").ranges == {"odd": (1, 9)}
