"""Label schemas: those that are shipped load, and a broken one is told in one line."""

from __future__ import annotations

import pytest

from galscan.errors import InputError, NotFoundError
from galscan.labels import load_schema, schema_names


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
    ],
)
def test_a_broken_schema_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_schema(str(path))
