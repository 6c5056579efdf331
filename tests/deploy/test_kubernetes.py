"""The Kubernetes files against the schemas of the Dask operator (its CRDs, as its package holds them)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
operator = pytest.importorskip("dask_kubernetes", reason="needs the extra kubernetes: the operator's schemas are in it")
jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
yaml = pytest.importorskip("yaml", reason="needs PyYAML")
CRDS = Path(operator.__file__).parent / "operator" / "customresources"


def schema_of(kind: str) -> dict[str, Any]:
    """Return what the operator accepts as `kind`; pods and services, which are Kubernetes' own, are left open."""
    crd = yaml.safe_load((CRDS / f"{kind.lower()}.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    return closed(version["schema"]["openAPIV3Schema"])


def closed(node: Any) -> Any:
    """Refuse keys that a schema does not name: Kubernetes would drop them without a word."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        reference = str(node["$ref"])
        if "templates.yaml" not in reference:
            return {}
        here = yaml.safe_load((CRDS / "templates.yaml").read_text())
        for step in reference.partition("#/")[2].split("/"):
            here = here[step]
        return closed(here)
    made = {key: closed(value) for key, value in node.items()}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def objects() -> list[tuple[str, dict[str, Any]]]:
    return [(p.name, o) for p in sorted(FOLDER.glob("*.yaml")) for o in yaml.safe_load_all(p.read_text())]


@pytest.mark.parametrize(("name", "given"), objects(), ids=[name for name, _ in objects()])
def test_the_operator_accepts_the_file(name, given):
    crd = yaml.safe_load((CRDS / f"{given['kind'].lower()}.yaml").read_text())["spec"]
    (version,) = crd["versions"]
    assert given["apiVersion"] == f"{crd['group']}/{version['name']}" and given["kind"] == crd["names"]["kind"]
    jsonschema.validate(
        {"spec": given["spec"]}, {"properties": {"spec": schema_of(given["kind"])["properties"]["spec"]}}
    )


def test_a_mistake_would_be_found():
    given = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    schema = schema_of("DaskCluster")["properties"]["spec"]
    for wrong in ({"worker": {**given["spec"]["worker"], "replica": 3}}, {"scheduler": {}}, {"idle": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(given["spec"] | wrong, schema)
