"""What vLLM is told: the command line, the GPUs of each replica, and the settings that they come from. Pure."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlt_teacher_server.engine.loading import engine_addresses, make_engines, pool_options
from rlt_teacher_server.launch.command import Address, Flags, command
from rlt_teacher_server.launch.devices import shares, visible_gpus
from rlt_teacher_server.launch.errors import LaunchFailed
from rlt_teacher_server.launch.launcher import Launch, plan
from rlt_teacher_server.launch.output import cause
from rlt_teacher_server.settings import Settings

PYTHON = Path("/engine/bin/python")
MODEL = Path("/models/m")
SOCKET = Path("/run/v.sock")


def flags_of(flags: Flags) -> dict[str, str]:
    """Flags by name, switches with an empty value; those without a value of their own lose nothing by it."""
    argv, _ = command(PYTHON, flags, Address(socket=SOCKET))
    assert argv[:5] == (str(PYTHON), "-m", "vllm.entrypoints.cli.main", "serve", str(MODEL))
    words = [*argv[5:], "--"]
    return {a: "" if b.startswith("--") else b for a, b in pairwise(words) if a.startswith("-") and b}


ALWAYS = {
    "--uds": str(SOCKET),
    "--served-model-name": str(MODEL),
    "--logprobs-mode": "processed_logprobs",
    "--generation-config": "vllm",
    "--enable-prefix-caching": "",
    "--disable-uvicorn-access-log": "",
    "--enable-lora": "",
    "--max-loras": "4",
    "--max-lora-rank": "64",
    "--max-cpu-loras": "64",
}


def test_on_a_processor():
    assert flags_of(Flags(MODEL)) == ALWAYS | {
        "--dtype": "float32",
        "--kv-cache-memory-bytes": str(4096 * 2**20),
        "--enforce-eager": "",
        "--worker-extension-cls": "rlt_vllm_worker.OutputLayers",
    }


def test_on_gpus():
    assert flags_of(Flags(MODEL, device="gpu", tensor_parallel=2)) == ALWAYS | {
        "--dtype": "auto",
        "--stream-interval": "4",
        "--gpu-memory-utilization": "0.9",
        "--tensor-parallel-size": "2",
    }


def test_memory_for_keys_and_values_takes_the_place_of_a_share():
    given = flags_of(Flags(MODEL, device="gpu", cache_mib=1000))
    assert given["--kv-cache-memory-bytes"] == str(1000 * 2**20)
    assert "--gpu-memory-utilization" not in given


def test_what_is_said_is_passed_on():
    given = flags_of(Flags(MODEL, served_name="m", dtype="bfloat16", max_model_len=99, max_loras=0, extra=("--x", "1")))
    assert given | {"--served-model-name": "m", "--dtype": "bfloat16", "--max-model-len": "99", "--x": "1"} == given
    assert "--enable-lora" not in given


def test_a_port_is_one_of_this_machine_only():
    argv, _ = command(PYTHON, Flags(MODEL), Address(port=8100))
    assert argv[5:9] == ("--host", "127.0.0.1", "--port", "8100")
    assert "--uds" not in argv


@pytest.mark.parametrize(("device", "own"), [("cpu", True), ("gpu", False)])
def test_environment(device, own):
    _, env = command(PYTHON, Flags(MODEL, device=device, threads=3), Address(socket=SOCKET))
    assert env["VLLM_SERVER_DEV_MODE"] == env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert (env.get("OMP_NUM_THREADS") == "3") == own
    assert ("VLLM_ENABLE_V1_MULTIPROCESSING" in env) == own


def test_threads_are_left_to_the_environment():
    assert "OMP_NUM_THREADS" not in command(PYTHON, Flags(MODEL), Address(socket=SOCKET)).env


def test_a_processor_s_vllm_finds_the_extension_of_its_workers_beside_what_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/given")
    [planned] = plan(Launch(PYTHON, Flags(MODEL)), tmp_path)
    ours, given = planned.command.env["PYTHONPATH"].split(os.pathsep)
    assert given == "/given"
    assert [path.name for path in Path(ours).iterdir() if path.suffix] == ["rlt_vllm_worker.py"]
    [planned] = plan(Launch(PYTHON, Flags(MODEL, device="gpu")), tmp_path, ["0"])
    assert "PYTHONPATH" not in planned.command.env


# GPUs


@pytest.mark.parametrize(
    ("gpus", "replicas", "each", "expected"),
    [
        (["0"], 1, 1, ["0"]),
        (["0", "1", "2", "3"], 2, 2, ["0,1", "2,3"]),
        (["0", "1", "2", "3"], 3, 1, ["0", "1", "2"]),
        (["GPU-a", "MIG-b"], 2, 1, ["GPU-a", "MIG-b"]),
    ],
)
def test_no_gpu_is_given_twice(gpus, replicas, each, expected):
    assert shares(gpus, replicas, each) == expected


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ([], "2 replicas of 2 GPUs need 4; there is none to be seen (nvidia-smi, CUDA_VISIBLE_DEVICES)"),
        (["7"], "2 replicas of 2 GPUs need 4; there is 1 (CUDA_VISIBLE_DEVICES=7)"),
        (["0", "1", "2"], "2 replicas of 2 GPUs need 4; there are 3 (CUDA_VISIBLE_DEVICES=0,1,2)"),
    ],
)
def test_too_few_gpus(gpus, words):
    with pytest.raises(LaunchFailed) as caught:
        shares(gpus, 2, 2)
    assert str(caught.value) == words


@pytest.mark.parametrize(("visible", "gpus"), [("0, 2", ["0", "2"]), ("GPU-1a", ["GPU-1a"]), ("", []), ("-1", [])])
async def test_what_the_environment_says_goes_first(visible, gpus):
    assert await visible_gpus({"CUDA_VISIBLE_DEVICES": visible}) == gpus


@pytest.mark.parametrize(
    ("script", "gpus"),
    [("printf '0\\n1\\n'", ["0", "1"]), ("echo no driver; exit 9", []), (None, [])],
)
async def test_else_the_driver_is_asked(script, gpus, tmp_path, monkeypatch):
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await visible_gpus({}) == gpus


def test_each_replica_has_gpus_and_a_socket_of_its_own(tmp_path):
    launch = Launch(PYTHON, Flags(MODEL, device="gpu", tensor_parallel=2), replicas=2)
    planned = plan(launch, tmp_path, ["0", "1", "2", "3", "4"])
    assert [each.command.env["CUDA_VISIBLE_DEVICES"] for each in planned] == ["0,1", "2,3"]
    assert [each.address for each in planned] == [f"unix:{tmp_path}/vllm-0.sock", f"unix:{tmp_path}/vllm-1.sock"]
    assert all(str(each.socket) in each.command.argv for each in planned)


def test_replicas_on_a_processor_are_told_of_no_gpu(tmp_path):
    [planned, _] = plan(Launch(PYTHON, Flags(MODEL), replicas=2), tmp_path)
    assert "CUDA_VISIBLE_DEVICES" not in planned.command.env
    assert planned.command.env["VLLM_RPC_BASE_PATH"] == str(tmp_path)


# Why it ended: the last lines are vLLM 0.31's own


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (["usage: …", "main.py: error: unrecognized arguments: --no-such 3 -x"], "it does not know --no-such, -x"),
        (
            ["main.py serve: error: argument --dtype: invalid choice: 'int3'"],
            "argument --dtype: invalid choice: 'int3'",
        ),
        (
            [
                "Traceback (most recent call last):",
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, User-specified max_model_len (100000) is greater [type=value_error, input_value=Args]",
                "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
            ],
            "User-specified max_model_len (100000) is greater",
        ),
        (
            [
                "Found ulimit of 20000 … errors like `OSError: [Errno 24] Too many open files`",
                "RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0",
                "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
                "[shutdown] MPClient: complete",
            ],
            "RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0",
        ),
        (["torch.OutOfMemoryError: CUDA out of memory."], "OutOfMemoryError: CUDA out of memory."),
        (["one", "two", " "], "two"),
        ([], "it wrote nothing"),
    ],
)
def test_why_it_ended(written, words):
    assert cause(written) == words


# Settings


def settings(**given) -> Settings:
    return Settings(model="m", **given)


def words_of(**given) -> str:
    with pytest.raises(ValidationError) as caught:
        settings(**given)
    return caught.value.errors()[0]["msg"].removeprefix("Value error, ")


def test_engines_are_named_by_their_addresses():
    given = settings(engine="http://a:1/, https://b ,unix:/run/c.sock")
    assert given.engine == ["http://a:1", "https://b", "unix:/run/c.sock"]


async def test_a_password_in_an_address_is_not_shown(tiny_model):
    from rlt_teacher_server.model import load_model

    model, given = load_model(str(tiny_model)), settings(engine="https://me:secret@a:1,unix:/run/c.sock")
    async with engine_addresses(given, model, [1]) as addresses:
        assert list(addresses) == ["https://a:1", "unix:/run/c.sock"]
        assert list(make_engines(given, model, [1], addresses)) == list(addresses)


async def test_the_embedded_engine_has_no_address(tiny_model):
    from rlt_teacher_server.model import load_model

    model = load_model(str(tiny_model))
    async with engine_addresses(settings(), model, [1]) as addresses:
        assert addresses == {}
        assert list(make_engines(settings(), model, [1], addresses)) == ["transformers"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "steam"}, "'steam' is neither `transformers`, `launch` nor an address (http://…, unix:/…)"),
        ({"engine": "unix:relative"}, "'unix:relative' is neither"),
        ({"engine": f"unix:/{'x' * 107}"}, "a Unix socket's path has at most 107 bytes"),
        ({"engine": "launch,http://a"}, "`launch` stands alone (--engine-replicas says how many)"),
        ({"engine": "http://a,transformers"}, "`transformers` stands alone"),
        ({"engine": "http://a,http://a/"}, "names an engine twice"),
        ({"engine": ","}, "must name an engine"),
        ({"engine": "http://"}, "'http://' is no address: http://host:port"),
        ({"engine": "http://a:99999"}, "'http://a:99999' is no address: http://host:port"),
        ({"engine": "http://a:1/v1"}, "'http://a:1/v1': leave out /v1"),
        ({"engine": "http://a:1/?x=1"}, "'http://a:1/?x=1' is no address: http://host:port"),
        ({"engine": "http://a", "engine_key": "a\nb"}, "--engine-key must be of printable ASCII characters"),
        ({"engine": "http://a", "reward_key": "schlüssel"}, "--reward-key must be of printable ASCII characters"),
        ({"engine": "launch", "engine_key": "k"}, "--engine-key goes with addresses"),
        ({"engine": "http://a", "device": "cpu"}, "--device goes with --engine transformers"),
        ({"engine_replicas": 2}, "--engine-replicas goes with --engine launch"),
        ({"engine": "http://a", "engine_args": "--seed 1"}, "--engine-args goes with --engine launch"),
        ({"engine": "launch", "engine_max_lora_rank": 7}, "must be one of 1, 8, 16, 32, 64, 128, 256, 320, 512"),
        ({"engine": "launch", "engine_args": '--x "'}, "is no line of a shell: No closing quotation"),
        ({"engine": "launch", "engine_args": "--port=1"}, "--port is not for a server that only the teacher server"),
        ({"engine": "launch", "engine_args": "--logprobs-mode raw_logprobs"}, "--logprobs-mode is processed_logprobs"),
    ],
)
def test_settings_that_make_no_sense(given, words):
    assert words_of(**given).startswith(words)


def test_flags_are_read_as_a_shell_does():
    given = settings(engine="launch", engine_args="--max-num-seqs 64 --chat-template '/a b'")
    assert given.engine_flags == ("--max-num-seqs", "64", "--chat-template", "/a b")


def test_what_the_pool_is_told():
    options = pool_options(settings(engine_max_waiting=5, engine_drain_s=2, engine_load_s=3))
    assert (options.max_waiting, options.drain_s, options.load_s) == (5, 2, 3)
