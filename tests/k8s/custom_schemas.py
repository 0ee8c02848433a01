"""JSON Schemas of the custom resources that the manifests use, made from the projects' own definitions.

    PYTHONPATH=tests python -m k8s.custom_schemas kedacore/keda v2.20.2 FOLDER/keda.sh_scaledobjects.yaml …

writes `custom/KIND.json`: the schema of the served version that is stored, with prose left out, and closed, so that a
misspelt field is an error as it is for the API server's strict validation. Rules in CEL (x-kubernetes-validations) are
not translated. Templates of pods are left open: Kubernetes' own schema checks them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

__all__ = ["FOLDER", "kinds", "problems"]

FOLDER = Path(__file__).parent / "custom"
KEPT = {"type", "enum", "required", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern"}
POD_TEMPLATES = {"leaderTemplate", "workerTemplate"}
INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}]}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of an OpenAPI schema that can be checked, without fields that it does not name."""
    if schema.get("x-kubernetes-int-or-string"):
        return INT_OR_STRING
    made = {key: value for key, value in schema.items() if key in KEPT}
    if "properties" in schema:
        inner = schema["properties"].items()
        made["properties"] = {name: {} if name in POD_TEMPLATES else closed(part) for name, part in inner}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = closed(schema["items"])
    return made


def convert(source: str, version: str, file: Path) -> tuple[str, dict[str, Any]]:
    """Kind, and what is stored of its definition."""
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]
    served = next(each for each in spec["versions"] if each["served"] and each["storage"])
    schema = closed(served["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"metadata": {"type": "object"}, "status": False}
    return spec["names"]["kind"], {
        "source": f"{source} {version}, {file.name}",
        "apiVersion": f"{spec['group']}/{served['name']}",
        "schema": schema,
    }


@cache
def kinds() -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}


def problems(resource: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a custom resource."""
    known = kinds()[resource["kind"]]
    if resource["apiVersion"] != known["apiVersion"]:
        yield f"apiVersion: want {known['apiVersion']}, not {resource['apiVersion']}"
    for error in Draft202012Validator(known["schema"]).iter_errors(resource):
        yield f"{error.json_path}: {error.message}"


def main(source: str, version: str, *files: str) -> None:
    for file in files:
        kind, stored = convert(source, version, Path(file))
        text = json.dumps(stored, separators=(",", ":"), sort_keys=True)
        (FOLDER / f"{kind}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
