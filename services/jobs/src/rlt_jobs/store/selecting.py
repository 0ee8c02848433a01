"""Which samples become rows of a version: eligibility, bounds and ranks, in SQL.

Samples are ranked with those of all problems that ask the same (`Problem.first_idx`), and only complete, scored ones
that are sealed for good are eligible. A value that is not finite is no value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, Final

from sqlalchemy import (
    CTE,
    ColumnElement,
    Double,
    Row,
    Text,
    and_,
    case,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.builds import Component, Selection, SelectionMode, Weights
from rlt_client.schemas.common import FieldError, GenStatus, ScoreStatus
from rlt_client.schemas.reward import MappingKind, Preset, ResolvedSpec, SpecRequest
from rlt_jobs.builds.models import Problem, Sample, Score
from rlt_jobs.store.models import File

__all__ = ["check_selection", "members"]

Number = ColumnElement[Any]

_SS: Final = {Component.ss_mean, Component.ss_min, Component.ss_sum}
_KL: Final = {Component.kl_mean, Component.kl_max}
_LACKS: Final[Mapping[Preset, set[Component]]] = {
    Preset.rlt: set(),
    Preset.rlt_segments: set(),
    Preset.kl_only: _SS,
    **dict.fromkeys((Preset.ss_only, Preset.rlpr, Preset.verifree, Preset.info_gain), _KL),
}
_WEIGHABLE: Final = {Preset.rlt, Preset.rlt_segments, Preset.ss_only, Preset.kl_only}
"""Rewards that are sums with coefficients."""

# Postgres raises where a product leaves the range of a double; nats and coefficients are nowhere near either end.
_HUGE: Final = 1e100
_TINY: Final = 1e-150
_MAX_EXPONENT: Final = 700.0  # as the reward server's; exp(709.8) is the largest double


def check_selection(selection: Selection, reward: Preset | SpecRequest | ResolvedSpec) -> None:
    """Raises `InvalidRequest` for weights of, or bounds to, what scores of this reward do not have."""
    preset = reward if isinstance(reward, Preset) else reward.preset
    errors = [
        FieldError(pointer=f"/selection/{where}", detail=detail) for where, detail in _refusals(selection, preset)
    ]
    if errors:
        raise InvalidRequest(errors=errors, type="component_unavailable")


def _refusals(selection: Selection, preset: Preset) -> Iterator[tuple[str, str]]:
    lacks = _LACKS[preset]
    for side in ("at_least", "at_most"):
        for name in getattr(selection, side):
            if name in lacks:
                yield f"{side}/{name}", f"scores by `{preset}` have no {name}"
    weights = selection.weights
    if weights is None:
        return
    if preset not in _WEIGHABLE:
        yield "weights", f"a reward by `{preset}` has no coefficients: score again with another `spec`"
        return
    if lacks >= _KL and (weights.lambda_ or weights.kl_max_coef):
        where = "lambda" if weights.lambda_ else "kl_max_coef"
        yield f"weights/{where}", f"scores by `{preset}` were made without KL: score again with `rlt`"
    if lacks >= _SS and weights.ss_min_coef:
        yield "weights/ss_min_coef", f"scores by `{preset}` were made without log-probs of the answer"


async def members(
    session: AsyncSession,
    build_id: int,
    scorer_id: int | None,
    selection: Selection,
    lo: int,
    hi: int,
    *,
    spec: ResolvedSpec | None = None,
) -> Sequence[Row[Any]]:
    """The selected samples of the problems lo … hi−1, by problem and rank.

    A row has the columns of the manifest; `reward` is the one that was ranked by. Problems that ask the same are
    ranked together wherever they stand, so that ranges can be asked for one by one.

    Args:
        build_id: whom the samples are filed under.
        spec: what the rewards were made with; needed where the selection has weights.

    Raises:
        InvalidRequest: the scores lack what the selection asks for.
    """
    if spec is not None:
        check_selection(selection, spec)
    elif selection.weights is not None:
        raise InvalidRequest("these scores do not tell what reward they are: score again", type="component_unavailable")
    return (await session.execute(_query(build_id, scorer_id, selection, lo, hi, spec))).all()


def _query(
    build_id: int, scorer_id: int | None, selection: Selection, lo: int, hi: int, spec: ResolvedSpec | None
) -> Any:
    weights = selection.weights
    raw = _stored() if weights is None or spec is None else _weighed(weights, spec)
    eligible = _eligible(build_id, scorer_id, _peers(build_id, lo, hi), raw)
    reward = eligible.c.stored if weights is None or spec is None else _mapped(eligible.c.raw, spec)
    rewarded = select(eligible, reward.label("reward")).cte("rewarded")
    bounded = select(rewarded).where(*_bounds(selection, rewarded)).cte("bounded")
    order = (bounded.c.raw.desc(), bounded.c.problem, bounded.c.sample_idx)
    rank = func.row_number().over(partition_by=bounded.c.peers, order_by=order).label("rank")
    ranked = select(bounded, rank).subquery("ranked")
    chosen = select(ranked).where(ranked.c.problem >= lo, ranked.c.problem < hi)
    most = {SelectionMode.best: 1, SelectionMode.top_k: selection.k, SelectionMode.all: None}[selection.mode]
    if most is not None:
        chosen = chosen.where(ranked.c.rank <= most)
    return chosen.order_by(ranked.c.problem, ranked.c.rank)


def _peers(build_id: int, lo: int, hi: int) -> CTE:
    """(peers, idx): all problems that ask what a problem of lo … hi−1 asks; `peers` is the first of them."""
    here = (Problem.build_id == build_id, Problem.idx >= lo, Problem.idx < hi)
    firsts = select(func.coalesce(Problem.first_idx, Problem.idx).label("peers")).where(*here).distinct().cte("firsts")
    others = (Problem.build_id == build_id, Problem.first_idx == firsts.c.peers, Problem.idx != firsts.c.peers)
    return union_all(
        select(firsts.c.peers, firsts.c.peers.label("idx")),
        select(firsts.c.peers, Problem.idx).where(*others),
    ).cte("peers")


def _eligible(build_id: int, scorer_id: int | None, peers: CTE, raw: Number) -> CTE:
    same = and_(
        Score.build_id == Sample.build_id, Score.problem == Sample.problem, Score.sample_idx == Sample.sample_idx
    )
    parts = (*_SS, *_KL, Component.format_, Component.n_answer, Component.n_think, Component.student_tokens)
    return (
        select(
            *(Sample.build_id, Sample.problem, Sample.sample_idx, Sample.file_id, Sample.row, peers.c.peers),
            *(Sample.completion_tokens, *(getattr(Score, part.value) for part in parts)),
            func.array_cat(Sample.flags, Score.flags, type_=ARRAY(Text)).label("flags"),
            raw.label("raw"),
            Score.reward.label("stored"),
        )
        .join(peers, peers.c.idx == Sample.problem)
        .join(Score, same)
        .join(File, and_(File.id == Sample.file_id, File.kind == "compact"))
        .where(
            *(Sample.build_id == build_id, Sample.gen_status == GenStatus.complete),
            *(Score.build_id == build_id, Score.scorer_id == scorer_id, Score.status == ScoreStatus.scored),
        )
        .cte("eligible")
    )


def _bounds(selection: Selection, row: CTE) -> list[ColumnElement[bool]]:
    """Conditions on a row. Postgres has NaN above everything, so that each names what lies above."""
    columns = row.c
    bounds = [_is_finite(columns.raw), _is_finite(columns.reward)]
    least = [(Component.reward, selection.min_reward), *selection.at_least.items()]
    most = [(Component.student_tokens, selection.context), *selection.at_most.items()]
    bounds += [columns[name].between(_number(bound), _INFINITY) for name, bound in least if bound is not None]
    bounds += [columns[name] <= _number(bound) for name, bound in most if bound is not None]
    if selection.without_flags:
        bounds.append(~columns.flags.overlap(selection.without_flags))
    return bounds


def _stored() -> Number:
    """What to rank by: of a mapped reward what was mapped, since a bounded mapping makes different ones equal."""
    return func.coalesce(Score.unmapped, Score.reward)


def _weighed(weights: Weights, spec: ResolvedSpec) -> Number:
    """r_ss − λ · r_kl + format (arXiv 2506.08388, section 3.2), in the order in which the reward server computes it."""
    has_ss, has_kl = _SS.isdisjoint(_LACKS[spec.preset]), _KL.isdisjoint(_LACKS[spec.preset])
    terms: list[Number] = []
    if has_ss:
        terms.append(Score.ss_mean + _times(weights.ss_min_coef, spec.ss_min_coef, Score.ss_min))
    if has_kl:
        r_kl = Score.kl_mean + _times(weights.kl_max_coef, spec.kl_max_coef, Score.kl_max)
        terms.append(-_times(weights.lambda_, spec.lambda_, r_kl))
    terms.append(_times(weights.format_coef, 1.0, Score.format))
    used = [Score.format, *((Score.ss_mean, Score.ss_min) if has_ss else ())]
    used += [Score.kl_mean, Score.kl_max] if has_kl else []
    sane = and_(*(column.between(_number(-_HUGE), _number(_HUGE)) for column in used))
    return case((sane, reduce(add, terms)), else_=null())


def _mapped(raw: Number, spec: ResolvedSpec) -> Number:
    """The reward server's mapping. Exponents below −700 count as −∞: Postgres raises where exp underflows."""
    if spec.mapping is None:
        return raw
    value = _times(spec.mapping.scale, None, raw) + _number(spec.mapping.offset)
    if spec.mapping.kind is MappingKind.affine:
        return value
    if spec.mapping.kind is MappingKind.exp:
        return case((value >= _number(_MAX_EXPONENT), _INFINITY), else_=_exp(value))
    small = _exp(-func.abs(value))
    return case((value >= _number(0.0), _number(1.0)), else_=small) / (_number(1.0) + small)


def _exp(value: Number) -> Number:
    low, high = _number(-_MAX_EXPONENT), _number(_MAX_EXPONENT)
    return case((value < low, _number(0.0)), else_=func.exp(func.least(value, high)))


def _times(given: float | None, default: float | None, value: Any) -> Number:
    coefficient = (default or 0.0) if given is None else given
    return _number(coefficient if abs(coefficient) >= _TINY else 0.0) * _tamed(value)


def _tamed(value: Any) -> Number:
    """0 for what is so small that a product with it might underflow."""
    return case((func.abs(value) < _number(_TINY), _number(0.0)), else_=value)


def _number(value: float) -> Number:
    return literal(float(value), Double())


_INFINITY: Final = _number(float("inf"))


def _is_finite(value: Any) -> ColumnElement[bool]:
    return and_(value > _number(float("-inf")), value < _INFINITY)
