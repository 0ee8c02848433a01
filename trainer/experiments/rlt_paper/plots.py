"""The pictures of docs/paper: students by arm, training by step, reward against what students learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from rlt_paper.arms import ARMS, STUDIES
from rlt_paper.records import Records

mpl.use("agg")
import matplotlib.pyplot as plt

__all__ = ["draw"]

_BLUE: Final = "#3b6ea5"


def draw(records: Records, folder: Path) -> list[str]:
    """Names of the pictures that there are records for."""
    drawn = []
    for study in STUDIES:
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
    """Left r_SS of teachers, right the reward of solvers, by step; a line each seed, a colour each arm."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    roles = {arm.title: arm.role for arm in ARMS.values()}
    teachers = [each for each in arms if "r_SS" in each["curve"][0]]  # not those of r_KL only
    _lines(axes[0], teachers, "r_SS", "teachers: r_SS, nats")
    _lines(
        axes[1],
        [each for each in arms if roles.get(each["title"]) == "student"],
        "reward",
        "solvers: own reward (0/1, or share of words)",
    )
    return _written(figure, folder, f"{study}-training.png")


def _lines(axis: Any, arms: list[dict[str, Any]], key: str, what: str) -> None:
    for title, colour in _colours(arms).items():
        for number, each in enumerate(arm for arm in arms if arm["title"] == title):
            steps, values = [row["step"] for row in each["curve"]], [row[key] for row in each["curve"]]
            axis.plot(steps, values, lw=1.2, color=colour, label=None if number else title)
    axis.set_xlabel("step")
    axis.set_ylabel(what)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(axis)


def _scores(found: list[dict[str, Any]], folder: Path, study: str) -> str:
    """Reward of each set of traces against the student that it made; crosses are traces that a program wrote."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    for title, colour in _colours(found).items():
        sets = [each for each in found if each["title"] == title]
        scores, right = ([each["figures"][key] for each in sets] for key in ("RLT score", "exact greedy"))
        axis.scatter(scores, right, color=colour, marker="x" if "shares" in sets[0] else "o", s=24, label=title)
    axis.set_xlabel("RLT reward of the traces (λ 3; one scorer a seed)")
    axis.set_ylabel("student, greedy exact")
    _legend(axis)
    return _saved(figure, axis, folder, f"{study}-scores.png")


def _colours(records: list[dict[str, Any]]) -> dict[str, Any]:
    titles = sorted({each["title"] for each in records})
    return {title: plt.get_cmap("tab20")(place % 20) for place, title in enumerate(titles)}


def _legend(axis: Any) -> None:
    """Beside the picture: it would hide what it explains."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _saved(figure: Any, axis: Any, folder: Path, name: str) -> str:
    axis.spines[["top", "right"]].set_visible(False)
    return _written(figure, folder, name)


def _written(figure: Any, folder: Path, name: str) -> str:
    figure.tight_layout()
    figure.savefig(folder / name, dpi=120)
    plt.close(figure)
    return name
