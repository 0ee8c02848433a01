"""What an evaluation found: as a record, as rows, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlt_trainer.answers import given_answer, verdict
from rlt_trainer.config.evaluate import EvaluateConfig, Match
from rlt_trainer.evaluate.figures import Estimate, mean_of, pass_at_k
from rlt_trainer.evaluate.sampling import Sample
from rlt_trainer.texts import Writer

__all__ = ["Judged", "judged", "summary", "table"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A sample and whether its answer is right: a row of samples.parquet."""

    problem: int
    question: str
    answer: str
    completion: str
    given: str | None
    """The answer in the completion; None where it has none, or not in the format."""
    share: float | None
    """1 for right, 0 for wrong, between them with `match = parts`; None: the comparison took too long."""
    tokens: int
    truncated: bool

    @property
    def right(self) -> bool:
        return self.share == 1


def judged(config: EvaluateConfig, writer: Writer, row: Mapping[str, Any], number: int, sample: Sample) -> Judged:
    given = given_answer(writer.format, sample.text)
    share = verdict(config.match, given, row["answer"])
    return Judged(number, row["question"], row["answer"], sample.text, given, share, sample.tokens, sample.truncated)


def summary(config: EvaluateConfig, problems: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """Figures over the samples of each problem."""
    samples = [sample for problem in problems for sample in problem]
    right = [sum(sample.right for sample in problem) for problem in problems]
    passes = {
        str(k): asdict(mean_of([pass_at_k(config.samples, count, k) for count in right])) for k in sorted({*config.ks})
    }
    found: dict[str, Any] = {"problems": len(problems), "match": config.match, "pass_at": passes}
    if config.match is Match.parts:
        shares = [sum(sample.share or 0.0 for sample in problem) / len(problem) for problem in problems]
        found["share_right"] = asdict(mean_of(shares))
    answered = [sample for sample in samples if sample.given is not None]
    found["counts"] = {
        "samples": len(samples),
        "right": sum(right),
        "wrong": len(answered) - sum(right),
        "no_answer": len(samples) - len(answered),
        "truncated": sum(sample.truncated for sample in samples),
        "undecided": sum(sample.share is None for sample in samples),
    }
    found["tokens_per_sample"] = sum(sample.tokens for sample in samples) / len(samples)
    return found


def table(results: Mapping[str, Any]) -> str:
    model = results["model"]
    lines = [f"{model['name']}  {model['revision'] or ''}".rstrip()]
    if found := results.get("data"):
        lines += list(_of_problems(found))
    for task, metrics in results.get("benchmarks", {}).get("results", {}).items():
        lines += [f"  {task:<28} {name:<28} {value:.4f}" for name, value in metrics.items() if _is_figure(value)]
    return "\n".join(lines) + "\n"


def _of_problems(found: Mapping[str, Any]) -> list[str]:
    counts = found["counts"]
    rows = {f"pass@{k}": told for k, told in found["pass_at"].items()}
    if "share_right" in found:
        rows["share right"] = found["share_right"]
    told = [f"  {name:<12} {_estimate(Estimate(**value))}" for name, value in rows.items()]
    names = ("right", "wrong", "no_answer", "truncated", "undecided")
    of_each = "  ".join(f"{name.replace('_', ' ')} {counts[name]}" for name in names)
    return [f"{found['problems']} problems, {counts['samples']} samples, match {found['match']}", *told, f"  {of_each}"]


def _estimate(one: Estimate) -> str:
    return f"{one.value:.4f}" + (f" ± {one.stderr:.4f}" if one.stderr is not None else "")


def _is_figure(value: Any) -> bool:
    return isinstance(value, float) and not isinstance(value, bool)
