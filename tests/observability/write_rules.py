"""Write docker/observability/rules.yml anew from the Prometheus operator's rules: `python -m observability.write_rules`
in tests/."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
HEAD = "# The groups of k8s/components/monitoring/rules.yaml, which is where they are changed.\n"


class _Writer(yaml.SafeDumper):
    """Long expressions as blocks, as they are written there."""


def _text(writer: _Writer, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return writer.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Writer.add_representer(str, _text)


def main() -> None:
    groups = yaml.safe_load((ROOT / "k8s/components/monitoring/rules.yaml").read_text())["spec"]["groups"]
    text = yaml.dump({"groups": groups}, Dumper=_Writer, sort_keys=False, width=116, allow_unicode=True)
    (ROOT / "docker/observability/rules.yml").write_text(HEAD + text)


if __name__ == "__main__":
    main()
