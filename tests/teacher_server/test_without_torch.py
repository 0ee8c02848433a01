"""The teacher's image has no torch: only the engine in this process may need it."""

from __future__ import annotations

import json
import subprocess
import sys

from rlt_trainer.tiny.cache import ensure_base

WITHOUT_TORCH = """
import importlib.util, json, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "accelerate", "peft"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == "torch" else find(name, package)
sys.meta_path.insert(0, Missing())
import rlt_teacher_server as package

needs = []
for module in pkgutil.walk_packages(package.__path__, "rlt_teacher_server."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name == "torch", error
            needs.append(module.name.removeprefix("rlt_teacher_server."))

from pathlib import Path
from rlt_client.formats import load_formats
from rlt_client.prompts import TextCodec, teacher_prompt

codec = TextCodec.of_folder(Path(sys.argv[1]))
codec.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"  # jinja2's
pieces = teacher_prompt(codec, load_formats(None)["stratos"], "What is 1 + 1?", "2")
print(json.dumps({"needs": needs, "prompt": "".join(piece.text for piece in pieces), "torch": "torch" in sys.modules}))
"""


IN_PROCESS = {f"engine.{name}" for name in ("batching", "cache", "decoding", "sampling", "transformers", "weights")}
"""Modules of the engine in this process."""


def test_only_the_engine_in_this_process_needs_torch_and_prompts_become_tokens_without_it():
    command = [sys.executable, "-c", WITHOUT_TORCH, str(ensure_base())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert "What is 1 + 1?" in told["prompt"]
    assert told["torch"] is False
    assert set(told["needs"]) == IN_PROCESS
