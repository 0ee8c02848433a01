"""`rlt-trainer models FOLDER`: have the models of a stack in a volume, where servers find them by role.

    FOLDER/teacher -> models/…      what the teacher server and its engines load
    FOLDER/student -> models/…      what the reward server scores with
    FOLDER/models/                  the tiny model made here, and downloads by name and commit

What is there is not asked for again, so a stack starts without the hub. A role that is a folder rather than a link was
put there by somebody and stays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlt_client.errors import RLTError
from rlt_trainer.tiny.folders import locked

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["ModelNotProvided", "Source", "main", "provide"]

TINY: Final = "tiny"
ASKED: Final = ".asked"
"""File in a download: the revisions, such as `main`, that it was taken for."""
WEIGHTS: Final = "*.safetensors"
PATTERNS: Final = (WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model")  # nothing that could hold code
IGNORED: Final = ("*/*", "consolidated*")  # the same weights again, for other libraries


class ModelNotProvided(RLTError):
    """A model could not be brought into its place. The message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """A name of the Hugging Face hub and a commit, tag or branch of it; or `tiny`, which has none."""

    name: str
    revision: str = "main"

    @property
    def stem(self) -> str:
        return self.name.replace("/", "--")


def provide(root: Path, role: str, source: Source) -> str:
    """Make `root`/`role` lead to what `source` names; what was done, in words.

    Raises:
        ModelNotProvided: it is not on the hub, the hub cannot be reached, or there is no room.
    """
    link = root / role
    if link.is_dir() and not link.is_symlink():
        return f"{role}: a folder of your own, left as it is"
    folder = _tiny(root) if source.name == TINY else _downloaded(root, source)
    target = folder.relative_to(root)
    if link.is_symlink() and link.readlink() == target:
        return f"{role}: {target}, as before"
    new = root / f".{role}.new"
    new.unlink(missing_ok=True)
    new.symlink_to(target)  # relative: the volume may be mounted anywhere
    new.replace(link)
    return f"{role}: {target}"


def _tiny(root: Path) -> Path:
    from rlt_trainer.tiny.cache import ensure_warmup

    return ensure_warmup(root)


def _downloaded(root: Path, source: Source) -> Path:
    models = root / "models"
    with locked(models / f".{source.stem}.lock"):
        return _found(models, source) or _download(models, source)


def _found(models: Path, source: Source) -> Path | None:
    """A download of this very commit, or one that was taken for this branch or tag."""
    for folder in models.glob(f"{source.stem}@*"):
        taken_for = (folder / ASKED).read_text(encoding="utf-8").split()
        if source.revision in (folder.name.partition("@")[2], *taken_for):
            return folder
    return None


def _download(models: Path, source: Source) -> Path:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        info = api.model_info(source.name, revision=source.revision, files_metadata=True)
        return _fetch(api, models, source, info)
    except RLTError:
        raise
    except Exception as error:  # the hub's errors share no base; each means that there is no model
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelNotProvided(f"{source.name}@{source.revision} cannot be downloaded: {reason}") from error


def _fetch(api: HfApi, models: Path, source: Source, info: ModelInfo) -> Path:
    """What has arrived stays in the part folder, where the next try finds it."""
    folder, part = models / f"{source.stem}@{info.sha}", models / f".{source.stem}@{info.sha}.part"
    if not folder.exists():
        sizes = _sizes(source, info)
        _check_room(models, source, sum(sizes.values()))
        kinds, others = list(PATTERNS), list(IGNORED)
        api.snapshot_download(
            source.name, revision=info.sha, local_dir=part, allow_patterns=kinds, ignore_patterns=others
        )
        _check_whole(part, source, sizes)
        shutil.rmtree(part / ".cache", ignore_errors=True)  # the hub's notes on a download under way
        (part / ASKED).touch()
        part.rename(folder)
    with (folder / ASKED).open("a", encoding="utf-8") as asked:
        asked.write(f"{source.revision}\n")
    return folder


def _sizes(source: Source, info: ModelInfo) -> dict[str, int]:
    """Bytes of each file that is wanted. Raises `ModelNotProvided` where they are no model."""
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = {name: size for name, size in files.items() if _any(name, PATTERNS) and not _any(name, IGNORED)}
    if "config.json" not in wanted or not any(fnmatch(name, WEIGHTS) for name in wanted):
        raise ModelNotProvided(f"{source.name} has no config.json with weights in safetensors: it cannot be served")
    return wanted


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _check_room(models: Path, source: Source, need: int) -> None:
    """Before gigabytes are moved. Raises `ModelNotProvided`."""
    free = shutil.disk_usage(models).free
    if need > free:
        raise ModelNotProvided(f"{source.name} takes {need / 1e9:.1f} GB, and {models} has {free / 1e9:.1f} GB free")


def _check_whole(part: Path, source: Source, sizes: dict[str, int]) -> None:
    """The hub's client takes a folder that is there for good when the network goes. Raises `ModelNotProvided`."""
    for name, size in sizes.items():
        there = (part / name).stat().st_size if (part / name).is_file() else None
        if there != size:
            raise ModelNotProvided(f"{source.name}: {name} is not whole ({there} of {size} bytes): try again")


def main(argv: Sequence[str], *, prog: str) -> int:
    """The exit status."""
    asked = _parser(prog).parse_args(argv)
    teacher = Source(asked.teacher, asked.teacher_revision)
    student = Source(asked.student, asked.student_revision) if asked.student else teacher
    try:
        for role, source in (("teacher", teacher), ("student", student)):
            sys.stdout.write(f"{provide(asked.folder, role, source)}\n")
            sys.stdout.flush()
    except (RLTError, OSError) as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Have the models of a stack in a volume, by role.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="/models in the containers")
    for role, default in (("teacher", TINY), ("student", "")):
        name, revision = f"RLT_{role.upper()}_MODEL", f"RLT_{role.upper()}_REVISION"
        says = "tiny, which is made here" if default else "the teacher's"
        parser.add_argument(
            f"--{role}",
            default=os.environ.get(name) or default,
            metavar="NAME",
            help=f"of the Hugging Face hub ({name}; {says})",
        )
        parser.add_argument(
            f"--{role}-revision",
            default=os.environ.get(revision) or "main",
            metavar="REVISION",
            help=f"commit, tag or branch; what a branch was when it was first asked for stays ({revision}; main)",
        )
    return parser
