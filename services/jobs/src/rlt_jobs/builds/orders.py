"""Which samples stand on a page: their keys in three orders, each read from an index and never sorted.

Rows are indexed within their state, so that a page of one state reads that page and nothing else; a page of all states
merges one such page of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    and_,
    false,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    union_all,
)

from rlt_client.schemas.builds import SampleSort
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds.models import Build, Sample, Score

__all__ = ["Page", "SampleFilter", "keys"]


@dataclass(frozen=True, slots=True)
class SampleFilter:
    gen_status: GenStatus | None = None
    score_status: ScoreStatus | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What is asked for; `after` are the values of the key that the page before ended with."""

    sort: SampleSort
    descending: bool
    wanted: SampleFilter
    after: list[Any] | None
    limit: int

    def cut(self, query: Select[*tuple[Any, ...]], *key: Any) -> Select[*tuple[Any, ...]]:
        """The rows of this page, in the order of `key`."""
        if self.after is not None:
            row, bound = tuple_(*key), tuple_(*self.after)
            query = query.where(row < bound if self.descending else row > bound)
        return query.order_by(*self.order(*key)).limit(self.limit)

    def order(self, *key: Any) -> list[ColumnElement[Any]]:
        return [column.desc() if self.descending else column for column in key]


def keys(build: Build, page: Page) -> Subquery:
    """(value, problem, sample_idx) of a page in its order; the value is what comes first in the order, if anything."""
    states = [page.wanted.gen_status] if page.wanted.gen_status else list(GenStatus)
    if page.sort is SampleSort.by_reward:
        return _merged(page, [_by_reward(build, page, state) for state in states])
    if page.wanted.score_status is ScoreStatus.score_error:
        return _of_errors(build, page)
    if page.sort is SampleSort.by_length:
        return _merged(page, [_by_length(build, page, state) for state in states])
    return _by_index(build, page).subquery("keys")


def _merged(page: Page, each: list[Select[*tuple[Any, ...]]]) -> Subquery:
    if len(each) == 1:
        return each[0].subquery("keys")
    merged = union_all(*(one.subquery().select() for one in each)).subquery("merged")
    return merged.select().order_by(*page.order(*merged.c)).limit(page.limit).subquery("keys")


def _by_reward(build: Build, page: Page, state: GenStatus) -> Select[*tuple[Any, ...]]:
    """Only those that have a reward, which is those that are scored."""
    key = (Score.reward, Score.problem, Score.sample_idx)
    query = select(*key).where(*_theirs(build), Score.gen_status == state, Score.reward.is_not(None))
    if page.wanted.score_status not in (None, ScoreStatus.scored):
        query = query.where(false())
    return page.cut(query, *key)


def _by_length(build: Build, page: Page, state: GenStatus) -> Select[*tuple[Any, ...]]:
    key = (Sample.completion_tokens, Sample.problem, Sample.sample_idx)
    query = _filtered(select(*key), build, page.wanted.score_status).where(Sample.gen_status == state)
    query = query.where(Sample.completion_tokens >= literal_column("0"))  # in the words of the index's condition
    return page.cut(query, *key)


def _by_index(build: Build, page: Page) -> Select[*tuple[Any, ...]]:
    key = (Sample.problem, Sample.sample_idx)
    query = _filtered(select(*key), build, page.wanted.score_status)
    if page.wanted.gen_status is not None:
        query = query.where(Sample.gen_status == page.wanted.gen_status)
    return page.cut(query, *key)


def _of_errors(build: Build, page: Page) -> Subquery:
    """Errors are few and have an index of their own, in the order of the samples; by length they are sorted."""
    query = select(Score.problem, Score.sample_idx).where(*_theirs(build), Score.status == ScoreStatus.score_error)
    if page.wanted.gen_status is not None:
        query = query.where(Score.gen_status == page.wanted.gen_status)
    if page.sort is SampleSort.by_index:
        return page.cut(query, Score.problem, Score.sample_idx).subquery("keys")
    key = (Sample.completion_tokens, Score.problem, Score.sample_idx)
    lengths = query.with_only_columns(*key).join(
        Sample,
        and_(Sample.build_id == build.data_id, Sample.problem == Score.problem, Sample.sample_idx == Score.sample_idx),
    )
    return page.cut(lengths, *key).subquery("keys")


def _filtered(query: Select[*tuple[Any, ...]], build: Build, status: ScoreStatus | None) -> Select[*tuple[Any, ...]]:
    """The build's samples whose score is in that state; `skipped` is also what no scorer was sent.

    Each sample's score is looked up by its key: a join could be turned round, and its rows would have to be sorted.
    """
    query = query.where(Sample.build_id == build.data_id)
    if status is None:
        return query
    same = (*_theirs(build), Score.problem == Sample.problem, Score.sample_idx == Sample.sample_idx)
    found = select(Score.status).where(*same).scalar_subquery()
    return query.where(
        (
            func.coalesce(found, literal(ScoreStatus.skipped, Score.status.type))
            if status is ScoreStatus.skipped
            else found
        )
        == status
    )


def _theirs(build: Build) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Scores of the build's samples by the build's scorer."""
    return Score.build_id == build.data_id, Score.scorer_id == build.scorer_id
