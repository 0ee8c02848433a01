"""Models in a volume, by role: the tiny one, and downloads from a hub that is a small HTTP server here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from plugins.hub import FIRST, SECOND

from rlt_trainer import provide as module
from rlt_trainer.provide import ModelNotProvided, Source, provide
from rlt_trainer.tiny.cache import ensure_base

MODEL = Source("org/model")


def test_a_model_is_downloaded_once_and_found_by_its_role(hub, tmp_path):
    assert provide(tmp_path, "teacher", MODEL) == f"teacher: models/org--model@{FIRST}"
    assert provide(tmp_path, "student", MODEL) == f"student: models/org--model@{FIRST}"
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert sum("GET /org/model/resolve" in request and "safetensors" in request for request in hub.requests) == 1
    assert not (tmp_path / "teacher").readlink().is_absolute()


def test_nothing_that_could_be_code_comes_along_and_no_weights_twice(hub, tmp_path):
    provide(tmp_path, "teacher", MODEL)
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == {"config.json", "model.safetensors", ".asked"}


def test_what_is_there_is_not_asked_for_again_though_the_branch_moved(hub, tmp_path):
    provide(tmp_path, "teacher", MODEL)
    hub.main = SECOND
    hub.requests.clear()
    assert provide(tmp_path, "teacher", MODEL).endswith(", as before")
    assert hub.requests == []


def test_another_commit_is_another_folder_and_the_link_moves(hub, tmp_path):
    provide(tmp_path, "teacher", MODEL)
    hub.files["model.safetensors"] = b"others"
    assert provide(tmp_path, "teacher", Source("org/model", SECOND)) == f"teacher: models/org--model@{SECOND}"
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == b"others"
    assert (tmp_path / "models" / f"org--model@{FIRST}").is_dir()


def test_a_download_that_broke_off_is_no_model_and_goes_on(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.cut = "model.safetensors"
    with pytest.raises(ModelNotProvided, match="org/model@main cannot be downloaded"):
        provide(tmp_path, "teacher", MODEL)
    assert not (tmp_path / "teacher").exists()
    hub.cut = ""
    hub.requests.clear()
    provide(tmp_path, "teacher", MODEL)
    assert not any("GET" in request and "resolve" in request and "config.json" in request for request in hub.requests)
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_name_that_the_hub_does_not_know(hub, tmp_path):
    with pytest.raises(ModelNotProvided, match="nobody/nothing@main cannot be downloaded"):
        provide(tmp_path, "teacher", Source("nobody/nothing"))


def test_a_model_without_safetensors_is_refused_before_it_is_moved(hub, tmp_path):
    del hub.files["model.safetensors"], hub.files["consolidated.safetensors"]
    with pytest.raises(ModelNotProvided, match=r"no config\.json with weights in safetensors"):
        provide(tmp_path, "teacher", MODEL)
    assert not any("resolve" in request for request in hub.requests)


def test_a_model_that_does_not_fit_is_refused_before_it_is_moved(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("", (), {"free": 10})()
    )
    with pytest.raises(ModelNotProvided, match=r"takes 0\.0 GB, and .* has 0\.0 GB free"):
        provide(tmp_path, "teacher", MODEL)


def test_a_folder_that_somebody_put_there_stays(hub, tmp_path):
    (tmp_path / "teacher").mkdir()
    assert provide(tmp_path, "teacher", MODEL) == "teacher: a folder of your own, left as it is"
    assert hub.requests == []


def test_the_command_without_a_hub(tmp_path):
    """A name is told by variables, and an unreachable hub in one line."""
    command = [sys.executable, "-m", "rlt_trainer", "models", str(tmp_path / "models")]
    env = os.environ | {"RLT_TEACHER_MODEL": "org/model", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("rlt-trainer models: error: org/model@main cannot be downloaded: ")
    assert done.stderr.count("\n") == 1


def test_both_roles_are_the_tiny_model_unless_told(tmp_path, monkeypatch, capsys):
    """Made by the trainer in other tests; here it stands for it that the base is as good."""
    made = tmp_path / "models" / "tiny-warmup"
    made.parent.mkdir()
    made.symlink_to(ensure_base())
    monkeypatch.setattr("rlt_trainer.tiny.cache.ensure_warmup", lambda _: made)
    assert module.main([str(tmp_path)], prog="p") == 0
    assert capsys.readouterr().out == "teacher: models/tiny-warmup\nstudent: models/tiny-warmup\n"
    assert (tmp_path / "student" / "config.json").is_file()
