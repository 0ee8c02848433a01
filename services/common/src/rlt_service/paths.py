"""Folders that requests may name paths in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlt_client.errors import InvalidRequest

__all__ = ["AllowedRoots"]


class AllowedRoots:
    """Turns a path from a request into a real one inside the allowed folders, or refuses it. No roots, no paths."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(root.expanduser().resolve() for root in roots)

    def resolve(self, path: str) -> Path:
        """The path with every symlink and `..` followed. It need not exist; the caller says so in its own words.

        A relative path is taken inside the first root that has it. Raises `InvalidRequest` of type `path_not_allowed`
        for an address (`file://` too), `~`, NUL, and all that ends outside.
        """
        if not path or "\0" in path or "://" in path or path.startswith("~"):
            raise _refusal("want a plain path, not an address or `~`")
        candidates = [self._real(root / path) for root in self._roots]  # an absolute path replaces the root
        inside = [candidate for candidate in candidates if self._contains(candidate)]
        if not inside:
            raise _refusal("this path is outside the folders that this server may read")
        return next(filter(self._exists, inside), inside[0])

    def contain(self, folder: Path) -> Path:
        """The folder itself. Raises `InvalidRequest` (path_not_allowed) where a file in it is a link that leads out;
        folders in it are not looked into: models lie in one folder each."""
        for file in folder.iterdir() if folder.is_dir() else ():
            self.resolve(str(file))
        return folder

    def hide(self, text: str) -> str:
        """The text with paths inside these folders as those who may only name such paths know them."""
        for root in sorted(self._roots, key=lambda root: -len(str(root))):
            text = text.replace(f"{root}/", "")
        return text

    def _real(self, path: Path) -> Path:
        try:
            return path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of symlinks
            raise _refusal("this path cannot be resolved") from error

    def _exists(self, path: Path) -> bool:
        try:
            return path.exists()
        except OSError as error:  # a name too long, a folder that is closed to us
            raise _refusal("this path cannot be read") from error

    def _contains(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self._roots)


def _refusal(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, type="path_not_allowed")
