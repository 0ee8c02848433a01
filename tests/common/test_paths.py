"""What requests may name on the server's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_client.errors import InvalidRequest
from rlt_service.paths import AllowedRoots


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "tiny").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "models-private").mkdir()
    return folder


def refused(roots: AllowedRoots, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        roots.resolve(path)
    assert caught.value.type == "path_not_allowed"
    assert str(Path.cwd()) not in str(caught.value)


def test_inside(root: Path) -> None:
    roots = AllowedRoots([root])
    assert roots.resolve(str(root / "tiny")) == root / "tiny"
    assert roots.resolve("tiny") == root / "tiny"
    assert roots.resolve("tiny/../tiny/./") == root / "tiny"
    assert roots.resolve(str(root)) == root
    assert roots.resolve("not/yet/there") == root / "not/yet/there"


@pytest.mark.parametrize("path", ["..", "../secret", "tiny/../../secret", "/etc/passwd", "/", "../models-private"])
def test_outside(root: Path, path: str) -> None:
    refused(AllowedRoots([root]), path)


@pytest.mark.parametrize(
    "path", ["", "http://x/y", "https://x/y", "file:///etc/passwd", "s3://b/k", "~", "~root/x", "a\0b"]
)
def test_not_a_plain_path(root: Path, path: str) -> None:
    refused(AllowedRoots([root]), path)


def test_symlinks_are_followed_before_judging(root: Path, tmp_path: Path) -> None:
    (root / "escape").symlink_to(tmp_path / "secret")
    (root / "within").symlink_to(root / "tiny")
    roots = AllowedRoots([root])
    refused(roots, "escape")
    refused(roots, "escape/deeper")
    refused(roots, str(root / "escape"))
    assert roots.resolve("within") == root / "tiny"


def test_a_root_may_be_a_symlink_itself(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    assert AllowedRoots([tmp_path / "alias"]).resolve(str(tmp_path / "alias" / "tiny")) == root / "tiny"


def test_a_loop_and_a_name_too_long_are_refusals(root: Path) -> None:
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    refused(AllowedRoots([root]), "a/x")
    refused(AllowedRoots([root]), "x" * 5000)


def test_no_roots_no_paths(root: Path) -> None:
    refused(AllowedRoots([]), str(root))
    refused(AllowedRoots([]), "tiny")


def test_the_first_root_that_has_it(root: Path, tmp_path: Path) -> None:
    roots = AllowedRoots([tmp_path / "secret", root])
    assert roots.resolve("tiny") == root / "tiny"
    assert roots.resolve("nowhere") == tmp_path / "secret" / "nowhere"


def test_what_lies_in_a_folder(root: Path, tmp_path: Path) -> None:
    roots = AllowedRoots([root])
    (root / "tiny" / "weights").symlink_to(root / "shared")
    (root / "tiny" / "folder").mkdir()
    assert roots.contain(root / "tiny") == root / "tiny"
    assert roots.contain(root / "nowhere") == root / "nowhere"
    (root / "tiny" / "config").symlink_to(tmp_path / "secret" / "config")
    with pytest.raises(InvalidRequest, match="path_not_allowed"):
        roots.contain(root / "tiny")
