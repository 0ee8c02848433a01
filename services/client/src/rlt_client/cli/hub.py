"""A folder as a data set of the Hugging Face hub. The token comes from where huggingface_hub looks for it."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlt_client.cli.errors import CommandFailed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["push", "require"]

OURS: Final = "data/*.parquet"
"""What a push replaces: a file of an earlier version that stayed would be rows of this one."""


def require() -> None:
    """Raises `CommandFailed` without huggingface_hub: better before the download than after it."""
    try:
        import huggingface_hub  # noqa: F401 only whether it is there
    except ImportError as error:
        raise CommandFailed("--push needs huggingface_hub: pip install 'rlt-client[hub]'") from error


def push(folder: Path, repo: str, *, private: bool, revision: str | None, message: str) -> str:
    """Upload the folder as one commit, which also removes the data files of an earlier one. Returns its address.

    Args:
        repo: `owner/name`; made if it does not exist.
        revision: a branch, made if it does not exist; the main one if None.

    Raises:
        CommandFailed: the hub refuses or is not reached, or the data set is public already where `private` is asked.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(library_name="rlt-client")
    try:
        _make(api, repo, private, revision)
        return _commit(api, folder, repo, revision, message)
    except HfHubHTTPError as error:
        raise CommandFailed(f"the hub refuses: {error.server_message or error}") from error
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise CommandFailed(f"{error}") from error
    except httpx.TransportError as error:
        raise CommandFailed(f"the hub at {api.endpoint} was not reached: {error!r}") from error


def _make(api: HfApi, repo: str, private: bool, revision: str | None) -> None:
    api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
    if private and not api.repo_info(repo, repo_type="dataset").private:
        raise CommandFailed(f"{repo} is there already and public: make it private first, or leave --private out")
    if revision is not None:
        api.create_branch(repo, repo_type="dataset", branch=revision, exist_ok=True)


def _commit(api: HfApi, folder: Path, repo: str, revision: str | None, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    there = api.list_repo_files(repo, repo_type="dataset", revision=revision)
    stale = [name for name in there if fnmatch(name, OURS) and name not in files]
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    # not `upload_folder`, which makes several commits of a large folder: who loads it meanwhile would get a part
    commit = api.create_commit(
        repo,
        [*operations, *map(CommitOperationDelete, stale)],
        commit_message=message,
        repo_type="dataset",
        revision=revision,
    )
    return commit.commit_url
