"""vLLM's own parser takes what the engines of every overlay are told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from k8s.manifests import OVERLAYS, Workload, workloads

GROUP = {"$(LWS_GROUP_SIZE)": "2", "$(LWS_LEADER_ADDRESS)": "engine-0.engine.rlt"}
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
for args in json.load(sys.stdin):
    given = make_arg_parser(FlexibleArgumentParser()).parse_args(args)
    validate_parsed_serve_args(given)
    names = ("model_tag", "nnodes", "node_rank", "master_addr", "headless", "logprobs_mode")
    print(json.dumps({name: getattr(given, name) for name in names}))
"""


def told(workload: Workload) -> list[str]:
    """Its arguments, with what the operator of groups puts in."""
    known = GROUP | {"$(LWS_WORKER_INDEX)": "1" if workload.headless else "0"}
    args = list(workload.container["args"])
    for name, value in known.items():
        args = [arg.replace(name, value) for arg in args]
    assert args.pop(0) == "serve"
    return args


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)  # half a minute of imports, and minutes beside other tests
def test_vllm_takes_every_flag(engine_python: Path) -> None:
    engines = [each for overlay in OVERLAYS for each in workloads(overlay) if each.label == "rlt-engine"]
    asked = json.dumps([told(engine) for engine in engines])
    command = [str(engine_python), "-c", PARSE]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    understood = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(understood) == len(engines)
    for engine, given in zip(engines, understood, strict=True):
        assert given["model_tag"] == "/models/teacher"
        assert given["logprobs_mode"] == "processed_logprobs"
        assert given["headless"] == engine.headless
        in_group = engine.kind == "LeaderWorkerSet"
        assert (given["nnodes"], given["node_rank"]) == ((2, int(engine.headless)) if in_group else (1, 0))
