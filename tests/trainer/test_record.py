"""What a run was told lies beside what it made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from rlt_trainer import record
from rlt_trainer.config import SFTConfig, load
from rlt_trainer.errors import BadConfig


def config(output: Path, **training: Any) -> SFTConfig:
    told = {"steps": 4, "learning_rate": 1e-3, **training}
    return SFTConfig(output=output, model={"name": "tiny"}, data={"path": "rows.jsonl"}, training=told)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "rlt_trainer.record"]


def test_the_file_makes_the_same_configuration(tmp_path: Path) -> None:
    told = config(tmp_path / "new" / "run")
    record.keep(told, goes_on=False)
    again, _ = load(SFTConfig, ["--config", str(told.output / "config.toml")], prog="rlt-trainer sft")
    assert again == told


def test_a_run_that_goes_on_with_other_settings_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rlt_trainer.record")
    record.keep(config(tmp_path), goes_on=True)  # of a run that wrote none
    record.keep(config(tmp_path), goes_on=True)
    assert not said(caplog)
    record.keep(config(tmp_path, steps=None, epochs=2), goes_on=True)
    assert said(caplog) == [
        "goes on with other settings than before: training.epochs unset → 2.0; training.steps 4 → unset"
    ]


def test_what_is_begun_anew_is_no_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record.keep(config(tmp_path), goes_on=False)
    record.keep(config(tmp_path, steps=9), goes_on=False)
    assert not said(caplog)


def test_an_output_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match=r"output .*/file/run: "):
        record.keep(config(tmp_path / "file" / "run"), goes_on=False)
