"""The pictures of docs/paper: students by arm, training by step, reward against what students learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from rlt_paper.records import Records

mpl.use("agg")
import matplotlib.pyplot as plt

__all__ = ["draw"]

_BLUE, _RED, _GREY = "#3b6ea5", "#c4572e", "#8a8a8a"
_STUDIES: Final = ("parts-a", "chain-a", "parts-b")


def draw(records: Records, folder: Path) -> list[str]:
    """Names of the pictures that there are records for."""
    drawn = []
    for study in _STUDIES:
        found = [each for each in records.all(f"{study}/seed-*/*") if "exact greedy" in each.get("figures", {})]
        arms = [each for each in found if "curve" in each and "r_SS" in each["figures"]]
        if arms:
            drawn += [_students(arms, folder, study)]
        if any(each["curve"] for each in arms):
            drawn += [_training([each for each in arms if each["curve"]], folder, study)]
        if len(scored := [each for each in found if "RLT score" in each["figures"]]) > 2:
            drawn += [_scores(scored, folder, study)]
    return drawn


def _students(arms: list[dict[str, Any]], folder: Path, study: str) -> str:
    """Greedy accuracy of each arm's student, one dot a seed."""
    titles = sorted({each["title"] for each in arms}, key=lambda title: -_mean(arms, title))
    figure, axis = plt.subplots(figsize=(7, 0.45 * len(titles) + 1.2))
    for place, title in enumerate(reversed(titles)):
        values = [each["figures"]["exact greedy"] for each in arms if each["title"] == title]
        axis.barh(place, sum(values) / len(values), color=_BLUE, alpha=0.35, height=0.6)
        axis.scatter(values, [place] * len(values), color=_BLUE, s=18, zorder=3)
    axis.set_yticks(range(len(titles)), list(reversed(titles)))
    axis.set_xlim(0, 1.02)
    axis.set_xlabel("test questions that the distilled student answers right, greedy")
    return _saved(figure, axis, folder, f"{study}-students.png")


def _mean(arms: list[dict[str, Any]], title: str) -> float:
    values = [each["figures"]["exact greedy"] for each in arms if each["title"] == title]
    return float(sum(values) / len(values))


def _training(arms: list[dict[str, Any]], folder: Path, study: str) -> str:
    """Left r_SS of teachers, right the share of right answers of solvers, by step."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
    for axis, key, what in zip(axes, ("r_SS", "reward"), ("teachers: r_SS, nats", "solvers: reward"), strict=True):
        shown = [each for each in arms if (key in each["curve"][0]) and (key == "r_SS") == ("r_SS" in each["curve"][0])]
        for place, each in enumerate(shown):
            steps = [row["step"] for row in each["curve"]]
            seed = each["piece"].split("/")[1].removeprefix("seed-")
            values = [row[key] for row in each["curve"]]
            axis.plot(steps, values, lw=1.2, color=plt.cm.tab10(place % 10), label=f"{each['title']} ({seed})")
        axis.set_xlabel("step")
        axis.set_ylabel(what)
        axis.spines[["top", "right"]].set_visible(False)
        if shown:
            axis.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return _written(figure, folder, f"{study}-training.png")


def _scores(found: list[dict[str, Any]], folder: Path, study: str) -> str:
    """Reward of each set of traces against the student that it made."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for each in found:
        figures, written = each["figures"], "shares" in each
        axis.scatter(figures["RLT score"], figures["exact greedy"], color=_GREY if written else _RED, s=22)
        point = (figures["RLT score"], figures["exact greedy"])
        axis.annotate(each["title"], point, fontsize=6, xytext=(4, 3), textcoords="offset points")
    axis.set_xlabel("RLT reward of the traces (one scorer for all, λ 3)")
    axis.set_ylabel("student, greedy exact")
    return _saved(figure, axis, folder, f"{study}-scores.png")


def _saved(figure: Any, axis: Any, folder: Path, name: str) -> str:
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return _written(figure, folder, name)


def _written(figure: Any, folder: Path, name: str) -> str:
    figure.savefig(folder / name, dpi=120)
    plt.close(figure)
    return name
