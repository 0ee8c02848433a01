"""The prompt formats that a server is started with."""

from __future__ import annotations

from pathlib import Path

from rlt_client.formats import Format, FormatError, load_format, load_formats

__all__ = ["read_formats"]


def read_formats(folder: Path | None, default: str) -> tuple[dict[str, Format], set[str]]:
    """All formats by name, and the names of the user's own, which lie in `folder`.

    Raises:
        FormatError: a file cannot be read, or there is no format of the default's name.
    """
    formats = load_formats(folder)
    if default not in formats:
        raise FormatError(f"no format is called {default!r}; there are {', '.join(sorted(formats))}")
    own = folder.glob("*.toml") if folder else ()
    return formats, {load_format(path).name for path in own}
