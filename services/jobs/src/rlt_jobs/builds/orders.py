"""Which samples stand on a page: their keys in three orders, each read from an index and never sorted.

Rows are indexed within their state, so that a page of one state reads that page and nothing else; a page of all states
merges one such page of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Integer,
    Select,
    Subquery,
    and_,
    bindparam,
    false,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.types import TypeEngine

from rlt_client.schemas.builds import SampleSort
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds.models import Build, Sample, Score

__all__ = ["BUILD", "SCORER", "Page", "SampleFilter", "Shape", "keys"]

BUILD: BindParameter[int] = bindparam("build", type_=BigInteger)
SCORER: BindParameter[int] = bindparam("scorer", type_=BigInteger)
_LIMIT: BindParameter[int] = bindparam("most", type_=BigInteger)


@dataclass(frozen=True, slots=True)
class SampleFilter:
    gen_status: GenStatus | None = None
    score_status: ScoreStatus | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """All of a page that its statement is made of: building one takes longer than running it."""

    sort: SampleSort
    descending: bool
    wanted: SampleFilter
    deep: bool
    """Whether it begins behind another page."""

    def cut(self, query: Select[*tuple[Any, ...]], *key: Any) -> Select[*tuple[Any, ...]]:
        """The rows of this page, in the order of `key`."""
        if self.deep:
            bounds = [bindparam(f"after_{place}", type_=_wide(column)) for place, column in enumerate(key)]
            row, bound = tuple_(*key), tuple_(*bounds)
            query = query.where(row < bound if self.descending else row > bound)
        return query.order_by(*self.order(*key)).limit(_LIMIT)

    def order(self, *key: Any) -> list[ColumnElement[Any]]:
        return [column.desc() if self.descending else column for column in key]


def _wide(column: Any) -> TypeEngine[Any]:
    """A made-up cursor may hold a number that the column cannot: no row lies behind it, and it is no error."""
    kind: TypeEngine[Any] = column.type
    return BigInteger() if isinstance(kind, Integer) else kind


@dataclass(frozen=True, slots=True)
class Page:
    """What is asked for; `after` are the values of the key that the page before ended with."""

    sort: SampleSort
    descending: bool
    wanted: SampleFilter
    after: list[Any] | None
    limit: int

    @property
    def shape(self) -> Shape:
        return Shape(self.sort, self.descending, self.wanted, self.after is not None)

    def values(self, build: Build) -> dict[str, Any]:
        """What the statement of its shape is run with."""
        bounds = {f"after_{place}": value for place, value in enumerate(self.after or ())}
        return {"build": build.data_id, "scorer": build.scorer_id, "most": self.limit, **bounds}


def keys(page: Shape) -> Subquery:
    """(value, problem, sample_idx) of a page in its order; the value is what comes first in the order, if anything."""
    states = [page.wanted.gen_status] if page.wanted.gen_status else list(GenStatus)
    if page.sort is SampleSort.by_reward:
        return _merged(page, [_by_reward(page, state) for state in states])
    if page.wanted.score_status is ScoreStatus.score_error:
        return _of_errors(page)
    if page.sort is SampleSort.by_length:
        return _merged(page, [_by_length(page, state) for state in states])
    return _by_index(page).subquery("keys")


def _merged(page: Shape, each: list[Select[*tuple[Any, ...]]]) -> Subquery:
    if len(each) == 1:
        return each[0].subquery("keys")
    merged = union_all(*(one.subquery().select() for one in each)).subquery("merged")
    return merged.select().order_by(*page.order(*merged.c)).limit(_LIMIT).subquery("keys")


def _by_reward(page: Shape, state: GenStatus) -> Select[*tuple[Any, ...]]:
    """Only those that have a reward, which is those that are scored."""
    key = (Score.reward, Score.problem, Score.sample_idx)
    query = select(*key).where(*_theirs(), Score.gen_status == state, Score.reward.is_not(None))
    if page.wanted.score_status not in (None, ScoreStatus.scored):
        query = query.where(false())
    return page.cut(query, *key)


def _by_length(page: Shape, state: GenStatus) -> Select[*tuple[Any, ...]]:
    key = (Sample.completion_tokens, Sample.problem, Sample.sample_idx)
    query = _filtered(select(*key), page.wanted.score_status).where(Sample.gen_status == state)
    query = query.where(Sample.completion_tokens >= literal_column("0"))  # in the words of the index's condition
    if page.wanted.score_status is ScoreStatus.scored:
        query = query.where(_any_scored(state))
    return page.cut(query, *key)


def _any_scored(state: GenStatus) -> ColumnElement[bool]:
    """Asked once for the page: a state of which nothing was scored would be searched to its end."""
    rewarded = select(Score.problem).where(*_theirs(), Score.gen_status == state, Score.reward.is_not(None))
    return rewarded.exists()


def _by_index(page: Shape) -> Select[*tuple[Any, ...]]:
    key = (Sample.problem, Sample.sample_idx)
    query = _filtered(select(*key), page.wanted.score_status)
    if page.wanted.gen_status is not None:
        query = query.where(Sample.gen_status == page.wanted.gen_status)
    return page.cut(query, *key)


def _of_errors(page: Shape) -> Subquery:
    """Errors are few and have an index of their own, in the order of the samples; by length they are sorted."""
    query = select(Score.problem, Score.sample_idx).where(*_theirs(), Score.status == ScoreStatus.score_error)
    if page.wanted.gen_status is not None:
        query = query.where(Score.gen_status == page.wanted.gen_status)
    if page.sort is SampleSort.by_index:
        return page.cut(query, Score.problem, Score.sample_idx).subquery("keys")
    key = (Sample.completion_tokens, Score.problem, Score.sample_idx)
    lengths = query.with_only_columns(*key).join(
        Sample,
        and_(Sample.build_id == BUILD, Sample.problem == Score.problem, Sample.sample_idx == Score.sample_idx),
    )
    return page.cut(lengths, *key).subquery("keys")


def _filtered(query: Select[*tuple[Any, ...]], status: ScoreStatus | None) -> Select[*tuple[Any, ...]]:
    """The build's samples whose score is in that state; `skipped` is also what no scorer was sent.

    Each sample's score is looked up by its key: a join could be turned round, and its rows would have to be sorted.
    """
    query = query.where(Sample.build_id == BUILD)
    if status is None:
        return query
    same = (*_theirs(), Score.problem == Sample.problem, Score.sample_idx == Sample.sample_idx)
    found = select(Score.status).where(*same).scalar_subquery()
    return query.where(
        (
            func.coalesce(found, literal(ScoreStatus.skipped, Score.status.type))
            if status is ScoreStatus.skipped
            else found
        )
        == status
    )


def _theirs() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Scores of the build's samples by the build's scorer."""
    return Score.build_id == BUILD, Score.scorer_id == SCORER
