"""Reports, dry runs and samples as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlt_client.cli.output import nats, safe
from rlt_client.schemas.builds import BuildEvent, BuildReport, Decile, DryRun, Reason, SampleRow
from rlt_client.schemas.common import GenStatus

__all__ = ["dry_run", "events", "report", "sample"]

WIDTH = 30  # cells of a bar


def report(found: BuildReport) -> RenderableType:
    counts = found.counts
    lines: list[RenderableType] = [
        Text(f"build {found.build}: {counts.problems:,} problems, {counts.samples:,} samples", style="bold"),
        *_reasons("not complete", found.generation),
        *_reasons("not scored", found.scoring),
    ]
    if not found.generation and not found.scoring:
        lines.append(Text("nothing failed", style="green"))
    if found.share < 1:
        lines.append(Text(f"what follows is taken from {found.share:.1%} of the problems", style="yellow"))
    if any(each.truncated for each in found.deciles):
        lines += [Text("\ncut off, by length of the problem", style="bold"), _deciles(found.deciles)]
    if found.rewards or found.completion_tokens:
        lines += [Text("\nspread", style="bold"), _spreads(found)]
    if found.flags:
        flags = ", ".join(f"{count:,} {name}" for name, count in found.flags.items())
        lines.append(Text(f"\nflags: {flags}"))
    return Group(*lines)


def _reasons(title: str, reasons: Sequence[Reason]) -> list[RenderableType]:
    if not reasons:
        return []
    rows = Table("", "", "samples", "such as problem/sample", box=None, header_style="dim", pad_edge=False)
    for each in reasons:
        examples = ", ".join(f"{problem}/{index}" for problem, index in each.examples)
        rows.add_row(Text(each.status, style="yellow"), each.reason or "", f"{each.count:,}", examples)
    return [Text(f"\n{title}", style="bold"), rows]


def _deciles(deciles: Sequence[Decile]) -> Table:
    rows = Table("characters", "cut off", "", box=None, header_style="dim", pad_edge=False)
    for each in deciles:
        share = each.truncated / each.samples if each.samples else 0.0
        rows.add_row(f"… {each.longest:,}", f"{share:.1%}", Text("█" * round(share * WIDTH), style="yellow"))
    return rows


def _spreads(found: BuildReport) -> Table:
    names = ("min", "p05", "p25", "p50", "p75", "p95", "max", "mean", "best_mean")
    rows = Table("", *names, box=None, header_style="dim", pad_edge=False)
    for name, spread in (("reward, nats", found.rewards), ("tokens", found.completion_tokens)):
        shown = (spread.get(each) for each in names)
        write = nats if "nats" in name else "{:,.0f}".format
        rows.add_row(name, *("" if value is None else write(value) for value in shown))
    return rows


def events(found: Sequence[BuildEvent]) -> Table:
    rows = Table("when", "what", "line", "", box=None, header_style="dim", pad_edge=False)
    for each in found:
        rows.add_row(f"{each.at:%Y-%m-%d %H:%M:%S}", each.kind, str(each.line or ""), Text(safe(each.detail)))
    return rows


def dry_run(found: DryRun) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim")
    rows.add_row("rows read", f"{found.rows_read:,}" + ("" if found.whole else ", the beginning of the source"))
    rows.add_row("problems", f"{found.problems:,}; {found.duplicates:,} more rows were there before")
    rows.add_row("samples", f"{found.samples:,}, shards: {found.shards:,}")
    rows.add_row("refused rows", f"{found.bad_rows:,}")
    rows.add_row(
        "tokens", f"{_number(found.prompt_tokens)} to read, {_number(found.completion_tokens)} to write at most"
    )
    rows.add_row("time", _hours(found))
    lines: list[RenderableType] = [rows]
    lines += [Text(f"line {bad.line}: {safe(bad.detail)}", style="yellow") for bad in found.bad]
    lines += [Panel(Text(safe(prompt)), title="what the teacher reads", title_align="left") for prompt in found.prompts]
    return Group(*lines)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _hours(found: DryRun) -> str:
    if found.gpu_hours is None or found.tokens_per_second is None:
        return "unknown until a build has run"
    return f"{found.gpu_hours:,.1f} GPU-hours at most, at {found.tokens_per_second:,.0f} tokens/s"


def sample(row: SampleRow) -> RenderableType:
    """One sample with its texts, which a model wrote and which may not command the terminal."""
    good = row.gen_status is GenStatus.complete
    title = f"problem {row.problem}, sample {row.sample} · {row.gen_status}"
    title += f" ({row.gen_reason})" if row.gen_reason else ""
    parts = [f"{row.completion_tokens or 0:,} tokens", _reward(row), *row.flags]
    text = Text.assemble(
        ("question  ", "dim"), safe(row.question or ""), "\n",
        ("answer    ", "dim"), safe(row.answer or ""), "\n\n",
        safe(row.explanation or row.completion or "no text"),
    )  # fmt: skip
    border = "green" if good else "yellow"
    return Panel(text, title=title, title_align="left", subtitle=" · ".join(parts), border_style=border)


def _reward(row: SampleRow) -> str:
    if row.reward is None:
        return f"no reward: {row.score_reason or row.score_status}"
    return f"reward {nats(row.reward)}"
