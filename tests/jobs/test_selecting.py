"""Selections against a plain reference: eligibility, bounds, weights and ranks, in any cut of the problems."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.builds import Selection
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_client.schemas.reward import Preset, ResolvedSpec
from rlt_jobs.builds.models import Problem, Sample, Score
from rlt_jobs.database import Database
from rlt_jobs.store import repository
from rlt_jobs.store.files import Stored
from rlt_jobs.store.selecting import check_selection, members

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCORER = 7
PROBLEMS = 5
_numbers = count()

PARTS = ("ss_mean", "ss_min", "ss_sum", "kl_mean", "kl_max", "format")
# few values, so that ties and bounds are met exactly
nats = st.sampled_from([-3.0, -1.5, -1.0, -0.3, 0.0, 0.1, 2.0, 1e-200, math.nan, math.inf, -math.inf, None])
lengths = st.sampled_from([None, 1, 10, 11, 300])
flags = st.lists(st.sampled_from(["leak", "repetition", "empty"]), max_size=2, unique=True)


@dataclass
class Row:
    """One sample with its score, as the reference sees it."""

    problem: int
    sample_idx: int
    gen_status: GenStatus
    kind: str | None
    completion_tokens: int
    sample_flags: list[str]
    status: ScoreStatus
    reward: float | None
    unmapped: float | None
    parts: dict[str, float | None]
    n_answer: int | None
    n_think: int | None
    student_tokens: int | None
    score_flags: list[str]

    def value(self, name: str) -> float | None:
        return self.parts[name] if name in self.parts else getattr(self, name)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    made = []
    for problem in range(PROBLEMS):
        for sample_idx in range(draw(st.integers(0, 3))):
            made.append(
                Row(
                    problem,
                    sample_idx,
                    draw(st.sampled_from([GenStatus.complete] * 4 + [GenStatus.truncated])),
                    draw(st.sampled_from(["compact"] * 6 + ["shard", None])),
                    draw(st.integers(1, 9)),
                    draw(flags),
                    draw(st.sampled_from([ScoreStatus.scored] * 5 + [ScoreStatus.score_error])),
                    draw(nats),
                    draw(st.sampled_from([None, None, -1.0, 5.0])),
                    {name: draw(nats) for name in PARTS},
                    draw(lengths),
                    draw(lengths),
                    draw(lengths),
                    draw(flags),
                )
            )
    return made


bounds = st.dictionaries(
    st.sampled_from(["reward", *PARTS, "completion_tokens", "n_answer", "n_think", "student_tokens"]),
    st.sampled_from([-2.0, -1.0, 0.0, 1.0, 10.0]),
    max_size=2,
)
coefficients = st.sampled_from([None, 0.0, 0.01, 1.0, 3.0, 1e-300])
weights: st.SearchStrategy[Any] = st.none() | st.builds(
    dict, **{"lambda": coefficients}, ss_min_coef=coefficients, kl_max_coef=coefficients, format_coef=coefficients
)
mappings: st.SearchStrategy[Any] = st.none() | st.builds(
    dict,
    kind=st.sampled_from(["affine", "exp", "sigmoid"]),
    scale=st.sampled_from([0.5, 1.0, 1e5]),
    offset=st.sampled_from([0.0, -2.0]),
)


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    mode = draw(st.sampled_from(["best", "top_k", "all"]))
    return Selection.model_validate(
        {
            "mode": mode,
            "k": draw(st.integers(1, 3)) if mode == "top_k" else None,
            "min_reward": draw(st.sampled_from([None, None, -1.0, 0.0])),
            "at_least": draw(bounds),
            "at_most": draw(bounds),
            "context": draw(st.sampled_from([None, None, 10])),
            "without_flags": draw(flags),
            "weights": draw(weights),
        }
    )


def spec_of(preset: Preset = Preset.rlt, mapping: Any = None) -> ResolvedSpec:
    kl = preset is not Preset.ss_only
    return ResolvedSpec(
        preset=preset,
        kl="k1" if kl else None,
        lambda_=3.0 if kl else None,
        ss_min_coef=None if preset is Preset.kl_only else 0.01,
        kl_max_coef=0.01 if kl else None,
        format_penalty=-1.0,
        student_temperature=0.7,
        teacher_temperature=0.7 if kl else None,
        mapping=mapping,
    )


def reweighed(row: Row, selection: Selection, spec: ResolvedSpec) -> float | None:
    """REWARD.md: r_ss − λ · r_kl + format; nothing where a part is missing or beyond all nats."""
    asked = selection.weights
    assert asked is not None

    def coefficient(given: float | None, default: float | None) -> float:
        return (default or 0.0) if given is None else given

    ss, kl = spec.preset is not Preset.kl_only, spec.preset is not Preset.ss_only
    used = ["format", *(["ss_mean", "ss_min"] if ss else []), *(["kl_mean", "kl_max"] if kl else [])]
    parts = {name: value for name in used if (value := row.parts[name]) is not None and abs(value) <= 1e100}
    if len(parts) < len(used):
        return None
    total = None
    if ss:
        total = parts["ss_mean"] + coefficient(asked.ss_min_coef, spec.ss_min_coef) * parts["ss_min"]
    if kl:
        r_kl = parts["kl_mean"] + coefficient(asked.kl_max_coef, spec.kl_max_coef) * parts["kl_max"]
        term = coefficient(asked.lambda_, spec.lambda_) * r_kl
        total = -term if total is None else total - term
    assert total is not None
    return total + coefficient(asked.format_coef, 1.0) * parts["format"]


def mapped(raw: float | None, spec: ResolvedSpec) -> float | None:
    if raw is None or spec.mapping is None:
        return raw
    value = spec.mapping.scale * raw + spec.mapping.offset
    if spec.mapping.kind == "affine":
        return value
    if spec.mapping.kind == "exp":
        return math.inf if value >= 700 else math.exp(value)
    small = math.exp(-abs(value))
    return (1 if value >= 0 else small) / (1 + small)


def expected(
    rows: Iterable[Row], firsts: list[int | None], selection: Selection, spec: ResolvedSpec
) -> list[tuple[int, int, int]]:
    """(problem, sample_idx, rank), by problem and rank."""
    groups: dict[int, list[tuple[float, Row]]] = {}
    for row in rows:
        if (row.gen_status, row.status, row.kind) != (GenStatus.complete, ScoreStatus.scored, "compact"):
            continue
        if selection.weights is None:
            raw, reward = row.reward if row.unmapped is None else row.unmapped, row.reward
        else:
            raw = reweighed(row, selection, spec)
            reward = mapped(raw, spec)
        if raw is None or reward is None or not (math.isfinite(raw) and math.isfinite(reward)):
            continue
        least = [("reward", selection.min_reward), *selection.at_least.items()]
        most = [("student_tokens", selection.context), *selection.at_most.items()]

        def value(name: str, row: Row = row, reward: float = reward) -> float:
            found = reward if name == "reward" else row.value(name)
            return math.nan if found is None else found

        if not all(bound is None or value(name) >= bound for name, bound in least):
            continue
        if not all(bound is None or value(name) <= bound for name, bound in most):
            continue
        if {*row.sample_flags, *row.score_flags} & set(selection.without_flags):
            continue
        first = firsts[row.problem]
        groups.setdefault(row.problem if first is None else first, []).append((raw, row))
    chosen = []
    for group in groups.values():
        ranked = sorted(group, key=lambda each: (-each[0], each[1].problem, each[1].sample_idx))
        most_rows = {"best": 1, "top_k": selection.k, "all": None}[selection.mode]
        chosen += [(row.problem, row.sample_idx, rank) for rank, (_, row) in enumerate(ranked[:most_rows], 1)]
    return sorted(chosen, key=lambda each: (each[0], each[2]))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def home(database: Database) -> AsyncIterator[Any]:
    """Writes rows as a build of its own; nothing of it is committed."""

    async def write(session: Any, made: list[Row], firsts: list[int | None]) -> int:
        build_id = 10**9 + next(_numbers)
        await session.exec_driver_sql("SET LOCAL session_replication_role = replica")  # no build stands behind the rows
        files: dict[str | None, int | None] = {None: None}
        for kind in ("compact", "shard"):
            stored = Stored(f"selecting/{build_id}/{kind}", 1, "")
            files[kind] = await repository.add_file(session, build_id, kind, 0, PROBLEMS, 9, stored)
        problems = [
            {"build_id": build_id, "idx": i, "question_hash": b"", "question": "q", "answer": "a", "first_idx": first}
            for i, first in enumerate(firsts)
        ]
        await session.execute(insert(Problem), problems)
        for row in made:
            key = {"build_id": build_id, "problem": row.problem, "sample_idx": row.sample_idx}
            sample = Sample(
                **key,
                try_=0,
                gen_status=row.gen_status,
                completion_tokens=row.completion_tokens,
                request_key=b"",
                flags=row.sample_flags,
                file_id=files[row.kind],
                row=0 if row.kind else None,
            )
            numbers = {name: getattr(row, name) for name in ("n_answer", "n_think", "student_tokens", "unmapped")}
            score = Score(
                **key,
                scorer_id=SCORER,
                status=row.status,
                reward=row.reward,
                **row.parts,
                **numbers,
                flags=row.score_flags,
            )
            other = Score(**key, scorer_id=SCORER + 1, status=ScoreStatus.scored, reward=99.0, flags=[])
            session.add_all([sample, score, other])
        await session.flush()
        return build_id

    yield write


class _Undone(Exception):
    """Rolls a test's rows back."""


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    made=rows(),
    firsts=st.lists(st.sampled_from([None, 0, 1]), min_size=PROBLEMS - 2, max_size=PROBLEMS - 2),
    selection=selections(),
    preset=st.sampled_from([Preset.rlt, Preset.rlt, Preset.ss_only, Preset.kl_only]),
    mapping=mappings,
    step=st.integers(1, PROBLEMS),
)
async def test_any_selection_is_what_the_reference_selects_however_it_is_cut(
    database: Database,
    home: Any,
    made: list[Row],
    firsts: list[int | None],
    selection: Selection,
    preset: Preset,
    mapping: Any,
    step: int,
) -> None:
    spec = spec_of(preset, mapping)
    firsts = [None, None, *firsts]
    try:
        async with database.begin() as session:
            connection = await session.connection()
            session.exec_driver_sql = connection.exec_driver_sql  # type: ignore[attr-defined] # one handle for both
            build_id = await home(session, made, firsts)
            found: list[Any] = []
            try:
                for lo in range(0, PROBLEMS, step):
                    found += await members(session, build_id, SCORER, selection, lo, lo + step, spec=spec)
            except InvalidRequest:
                with pytest.raises(InvalidRequest):
                    check_selection(selection, preset)
                raise _Undone from None
            keys = [(row.problem, row.sample_idx, row.rank) for row in found]
            assert keys == expected(made, firsts, selection, spec)
            if selection.weights is not None:
                by_key = {(row.problem, row.sample_idx): row for row in made}
                for row in found:
                    raw = reweighed(by_key[row.problem, row.sample_idx], selection, spec)
                    assert row.raw == raw  # to the last bit
                    assert row.reward == pytest.approx(mapped(raw, spec), rel=1e-14, abs=1e-300)
            raise _Undone
    except _Undone:
        pass


@pytest.mark.parametrize(
    ("preset", "selection", "pointer"),
    [
        (Preset.ss_only, {"weights": {"lambda": 3}}, "/selection/weights/lambda"),
        (Preset.ss_only, {"weights": {"kl_max_coef": 1}}, "/selection/weights/kl_max_coef"),
        (Preset.kl_only, {"weights": {"ss_min_coef": 1}}, "/selection/weights/ss_min_coef"),
        (Preset.rlpr, {"weights": {"format_coef": 2}}, "/selection/weights"),
        (Preset.ss_only, {"at_most": {"kl_max": 3}}, "/selection/at_most/kl_max"),
        (Preset.kl_only, {"at_least": {"ss_mean": -1}}, "/selection/at_least/ss_mean"),
    ],
)
async def test_what_the_scores_do_not_have_is_refused_with_a_pointer(
    preset: Preset, selection: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_selection(Selection.model_validate(selection), preset)
    assert refused.value.type == "component_unavailable"
    assert [error.pointer for error in refused.value.errors] == [pointer]


@pytest.mark.parametrize(
    ("preset", "selection"),
    [
        (Preset.ss_only, {"weights": {"lambda": 0, "ss_min_coef": 1}}),
        (Preset.kl_only, {"weights": {"lambda": 1}}),
        (Preset.rlpr, {"at_least": {"ss_mean": -1, "student_tokens": 5}}),
        (Preset.rlt_segments, {"weights": {"lambda": 9}, "at_most": {"kl_max": 3}}),
    ],
)
async def test_what_they_have_is_not(preset: Preset, selection: dict[str, Any]) -> None:
    check_selection(Selection.model_validate(selection), preset)
