"""docs/paper/README.md from the records: what was measured, as tables, with what limits the claim."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rlt_paper import correlation, plots
from rlt_paper.arms import ARMS, SMALL, SOURCES, full
from rlt_paper.records import Records

__all__ = ["SAMPLES", "compared", "page", "write"]

Row = dict[str, Any]
_STUDIES: Final = {
    "parts-a": "Four independent parts (corpus a)",
    "parts-b": "Four independent parts, a richer corpus (b)",
    "chain-a": "One chain of four operations",
}
_COLUMNS: Final = (
    "exact greedy",
    "exact T=.7",
    "parts greedy",
    "parts T=.7",
    "RLT score",
    "r_SS",
    "KL mean",
    "good parts",
    "all good",
    "leaked parts",
    "digressing",
    "words",
)
_TEXTS: Final = Path(__file__).parent / "page.md"
_MISSING: Final = "not run yet"


def write(records: Path, folder: Path) -> None:
    """The page and its plots, into a folder."""
    found = Records(records)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(found, folder)
    (folder / "README.md").write_text(page(found, drawn), encoding="utf-8")


def page(records: Records, drawn: Sequence[str] = ()) -> str:
    """The page: what is written by hand, with a table in the place of each `{{name}}`.

    Pieces that were made a second time have their first record in `repeated`, beside the folder of records.
    """
    text = _TEXTS.read_text(encoding="utf-8")
    tables = {name: _study(records, name) for name in _STUDIES}
    tables |= {
        "cold": _cold(records),
        "transfer": _transfer(records),
        "correlation": _correlations(records),
        "lost": _lost(records),
        "repeated": _repeated(records, Records(records.folder.with_name("repeated"))),
        "starvation": _starvation(records),
        "where": _where(records),
        "plots": "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in drawn) or _MISSING,
        "examples": _examples(records),
    }
    for name, table in tables.items():
        text = text.replace(f"{{{{{name}}}}}", table)
    return text


def compared(records: Records, committed: Records) -> str:
    """The arms of `make paper` with the figures that are committed for the same seed, as a table."""
    rows = []
    for name in SMALL:
        mine, theirs = (each.find(f"parts-a/seed-1/{name}") for each in (records, committed))
        cells = [f"{mine['figures'][key]:.3f}" if mine else _MISSING for key in _SHORT]
        rows.append([ARMS[name].title, *cells, f"{theirs['figures'][_SHORT[0]]:.3f}" if theirs else ""])
    return _table(["traces from", *_SHORT, f"{_SHORT[0]}, as committed"], rows)


_SHORT: Final = ("exact greedy", "parts greedy", "good parts", "leaked parts")


def _study(records: Records, name: str) -> str:
    rows = []
    for piece, title in _pieces(name):
        found = [each for each in records.all(f"{name}/seed-*/{piece}") if "figures" in each]
        rows.append([title, *(_cells(found))])
    return _table(["traces", "seeds", *_COLUMNS], rows)


def _pieces(study: str) -> list[tuple[str, str]]:
    task, corpus = study.split("-")
    arms = [(name, ARMS[name].title) for name in full(task, corpus)]
    sources = [(each.name, each.title) for each in SOURCES] if corpus == "a" else []
    return [*arms, *sources]


def _cells(found: Sequence[Row]) -> list[str]:
    if not found:
        return [_MISSING, *[""] * len(_COLUMNS)]
    return [str(len(found)), *(_spread([row["figures"].get(name) for row in found]) for name in _COLUMNS)]


def _spread(values: Iterable[float | None]) -> str:
    """Mean ± sample standard deviation, where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{statistics.fmean(known):.3f} ± {statistics.stdev(known):.3f}"


def _starvation(records: Records) -> str:
    """Right answers among all samples of a solver's training, of each seed."""
    rows = []
    for study in _STUDIES:
        for record in records.all(f"{study}/seed-*/solver"):
            curve = record["curve"]
            right = [round(step["reward"] * SAMPLES) for step in curve]
            first = next((step["step"] for step, count in zip(curve, right, strict=True) if count), None)
            seed = record["piece"].split("/")[1]
            last = f"{curve[-1]['reward']:.3f}" if curve else ""
            rows.append([study, seed, f"{sum(right)} of {len(curve) * SAMPLES:,}", str(first or "none"), last])
    return _table(["study", "seed", "right answers", "first at step", "share in the last step"], rows)


SAMPLES: Final = 256  # of a step, as configs/rl.toml has it


def _cold(records: Records) -> str:
    """Students before and after RL for right answers, by whose traces had taught them."""
    rows = []
    for study, name, found in _grouped(records, "cold"):
        figures = [each["figures"] for each in found]
        cells = [_spread([row[f"{key}{when}"] for row in figures]) for key in _TOLD for when in (" before", "")]
        rows.append([study, ARMS[name].title, str(len(found)), *cells])
    head = [f"{key}, {when}" for key in _TOLD for when in ("before", "after")]
    return _table(["study", "student of", "seeds", *head], rows)


def _transfer(records: Records) -> str:
    """Students of each kind of questions that the teacher was not trained on."""
    rows = []
    for study, name, found in _grouped(records, "transfer"):
        figures = [each["figures"] for each in found]
        for kind in sorted({key.partition(": ")[0] for key in figures[0]}):
            cells = [_spread([row.get(f"{kind}: {key}") for row in figures]) for key in (*_TOLD, "good parts")]
            rows.append([study, ARMS[name].title, kind, str(len(found)), *cells])
    return _table(["study", "teacher", "questions", "seeds", *_TOLD, "good parts"], rows)


_TOLD: Final = ("exact greedy", "exact T=.7")


def _grouped(records: Records, kind: str) -> Iterator[tuple[str, str, list[Row]]]:
    """Study, arm and the records of all seeds of one kind of piece."""
    for study in _STUDIES:
        for name in ARMS:
            if found := list(records.all(f"{study}/seed-*/{kind}-{name}")):
                yield study, name, found


def _correlations(records: Records) -> str:
    rows = []
    for study in ("parts-a", "chain-a"):
        found = list(records.all(f"{study}/seed-*/*"))
        kinds = {
            "all": found,
            "with an explanation": [each for each in found if not each["piece"].endswith("/answer")],
            "with an explanation, written by a program": [each for each in found if each.get("shares")],
        }
        for which, sets in kinds.items():
            single = [correlation.by_weight(seed) for seed in _by_seed(sets)]
            for weight, figures in correlation.by_weight(sets).items():
                alone = ", ".join(each[weight][1] for each in single if weight in each)
                rows.append([study, which, weight, *figures, alone])
    head = ["study", "sets", "λ of the score", "number", "Pearson", "Spearman", "Pearson in each seed alone"]
    return _table(head, rows)


def _by_seed(found: Sequence[Row]) -> list[list[Row]]:
    seeds: dict[str, list[Row]] = defaultdict(list)
    for each in found:
        seeds[each["piece"].split("/")[1]].append(each)
    return list(seeds.values())


def _lost(records: Records) -> str:
    """The most traces that any set lacks."""
    sets = [each for each in records.all("*/seed-*/*") if "sizes" in each and "traces" in each["figures"]]
    return str(max((each["sizes"]["traces"] - round(each["figures"]["traces"]) for each in sets), default="?"))


def _repeated(records: Records, repeated: Records) -> str:
    """Students of pieces that were made twice, on two machines."""
    rows = []
    for earlier in repeated.all("*/seed-*/*"):
        later = records.find(earlier["piece"])
        if later and "figures" in earlier:
            study, seed, name = earlier["piece"].split("/")
            values = [f"{each['figures'][key]:.3f}" for key in (*_TOLD, "all good") for each in (earlier, later)]
            rows.append([study, seed, ARMS[name].title, *values])
    head = [f"{key}, {when}" for key in (*_TOLD, "all good") for when in ("first", "again")]
    return _table(["study", "seed", "traces", *head], rows)


def _examples(records: Records) -> str:
    lines = [
        f"* {each['title']}: `{each['example']['trace']}`"
        for each in records.all("parts-a/seed-1/*")
        if each.get("example", {}).get("trace")
    ]
    return "\n".join(lines) or _MISSING


def _where(records: Records) -> str:
    machines: dict[str, int] = defaultdict(int)
    for record in records.all("*/seed-*/*"):
        machines["; ".join(f"{name} {value}" for name, value in record["machine"].items())] += 1
    return "\n".join(f"* {count} records on: {shown}" for shown, count in machines.items()) or _MISSING


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return _MISSING
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
