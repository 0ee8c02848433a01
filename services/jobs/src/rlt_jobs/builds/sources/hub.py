"""Data sets of the Hugging Face hub, and folders that `datasets` reads, streamed; needs `rlt-jobs[hub]`.

Not read: what a data set's card names outside its own repository. A card may name any file or address, and
`datasets` would open it as this process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.builds import BuildKind, HubSource, Source
from rlt_jobs.builds.sources.arrow import BATCH_ROWS, kept_columns, rows_of
from rlt_jobs.builds.sources.rows import Position, Row, SourceError, check_columns
from rlt_service.paths import AllowedRoots

if TYPE_CHECKING:
    from datasets import DatasetBuilder

__all__ = ["REPOSITORY", "local_folder", "pinned", "rows"]

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""`owner/name`. Names without an owner are left out: `datasets` takes `json` or `csv` for what lies around it."""
COMMIT = re.compile(r"[0-9a-f]{40}")
ASK_SECONDS = 30.0  # for one look at the hub; reading itself is retried by `datasets`


def local_folder(name: str, roots: AllowedRoots) -> Path | None:
    """The folder that a name means inside the allowed ones, if it means one."""
    try:
        folder = roots.resolve(name)
    except InvalidRequest:
        return None
    return folder if folder.is_dir() else None


def pinned(hub: HubSource, roots: AllowedRoots) -> HubSource:
    """The same with the commit that its revision means now, so that a read that is resumed reads the same rows.

    Raises:
        SourceError: there is no such data set or revision, or the hub cannot be reached.
    """
    if local_folder(hub.name, roots) or COMMIT.fullmatch(hub.revision or ""):
        return hub
    _refuse_working_folder(hub.name)
    with _reasons(hub, roots):
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(hub.name, revision=hub.revision, timeout=ASK_SECONDS).sha
    return hub.model_copy(update={"revision": commit})


def rows(hub: HubSource, at: Position, source: Source, kind: BuildKind, roots: AllowedRoots) -> Iterator[Row]:
    """The rows after the first `at.line`, in the data set's own order.

    Raises:
        SourceError: what was asked for is not there, cannot be reached, or lacks a column.
    """
    with _reasons(hub, roots):
        tables = _tables(hub, at, roots)
    columns: list[str] | None = None
    line = at.line
    while True:
        with _reasons(hub, roots):
            table = next(tables, None)
        if table is None:
            return
        if columns is None:
            columns = kept_columns(table.schema)
            check_columns(columns, source, kind)
        for batch in table.select(columns).to_batches():
            yield from rows_of(batch, line)
            line += batch.num_rows


def _tables(hub: HubSource, at: Position, roots: AllowedRoots) -> Iterator[Any]:
    from datasets import load_dataset_builder
    from datasets.utils import disable_progress_bars

    disable_progress_bars()  # a server's log is no terminal
    folder = local_folder(hub.name, roots)
    if folder is None:
        _refuse_working_folder(hub.name)
    builder = load_dataset_builder(str(folder or hub.name), hub.config, revision=None if folder else hub.revision)
    _check_files(builder, folder, roots)
    dataset = builder.as_streaming_dataset(split=hub.split)
    return iter(dataset.skip(at.line).with_format("arrow").iter(BATCH_ROWS))


def _check_files(builder: DatasetBuilder, folder: Path | None, roots: AllowedRoots) -> None:
    """Raises `SourceError` for a file that lies elsewhere than the data set does."""
    for files in (builder.config.data_files or {}).values():
        for file in map(str, files):
            if folder is None and not file.startswith("hf://datasets/"):
                raise SourceError("path_not_allowed", "the data set names a file outside its repository")
            if folder is not None:
                _check_local(file, roots)


def _check_local(file: str, roots: AllowedRoots) -> None:
    try:
        roots.resolve(file)
    except InvalidRequest as error:
        raise SourceError("path_not_allowed", "the data set names a file outside the allowed folders") from error


def _refuse_working_folder(name: str) -> None:
    """`datasets` takes a name for a folder beside the process before it asks the hub."""
    if Path(name).exists():
        raise SourceError("path_not_allowed", f"{name} is a folder outside those that builds may read")


@contextmanager
def _reasons(hub: HubSource, roots: AllowedRoots) -> Iterator[None]:
    """Whatever `datasets` and the hub's client raise, in words and as one of three types of `SourceError`."""
    try:
        yield
    except SourceError:
        raise
    except ModuleNotFoundError as error:
        raise SourceError(
            "hub_not_installed", "reading data sets of the hub needs `pip install rlt-jobs[hub]`"
        ) from error
    except Exception as error:  # they raise what their loaders, HTTP clients and parsers do
        why = roots.hide(str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "hub_unavailable" if _may_pass(error) else "hub_unusable"
        raise SourceError(kind, f"{hub.name}: {why}") from error


def _may_pass(error: BaseException) -> bool:
    """Whether the hub could not be reached, as against an answer of its own."""
    import httpx

    if isinstance(error, FileNotFoundError):
        return False
    return isinstance(error, ConnectionError | TimeoutError | httpx.TransportError)
