"""Kubernetes' own schemas, from the package kubernetes-validate, each version's definitions read once.

Its own `validate` reads 1.5 MB for every resource, which makes a minute of what is seconds here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate import utils
from referencing import Registry, Resource

__all__ = ["problems"]


def problems(resource: dict[str, Any], version: str) -> Iterator[str]:
    """What is wrong with a resource, strictly: a field that this version of Kubernetes does not know is."""
    for error in _validator(resource["apiVersion"], resource["kind"], version).iter_errors(resource):
        yield f"{version}: {resource['kind']} {resource['metadata'].get('name')} {error.json_path}: {error.message}"


@cache
def _validator(api_version: str, kind: str, version: str) -> Draft202012Validator:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # rbac.authorization.k8s.io/v1 → rbac-v1
    schema = _contents(f"{kind.lower()}-{group}", version)
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    made: Registry[Any] = Registry()
    return (Resource.from_contents(_contents("_definitions", version)) @ made).crawl()


def _contents(name: str, version: str) -> Any:
    """Raises FileNotFoundError for what this version does not have."""
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    return utils.schema_contents(f"{folder}/{name}.json", version)
