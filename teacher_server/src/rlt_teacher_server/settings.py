"""What the teacher server can be told: flags and `RLT_TEACHER_…` variables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from rlt_client.schemas.explain import MAX_SAMPLES
from rlt_service.settings import ServerSettings, StrList
from rlt_teacher_server.launch.command import LORA_RANKS, OURS

__all__ = ["IN_PROCESS", "LAUNCH", "Settings"]

IN_PROCESS: Final = "transformers"
LAUNCH: Final = "launch"
SCHEMES: Final = ("http://", "https://", "unix:/")
LONGEST_SOCKET: Final = 107  # bytes of a Unix socket's path (sun_path)
LAUNCH_ONLY: Final = (
    "engine_replicas",
    "engine_python",
    "engine_device",
    "engine_tensor_parallel",
    "engine_max_model_len",
    "engine_max_loras",
    "engine_max_lora_rank",
    "engine_memory_mib",
    "engine_gpu_memory",
    "engine_start_s",
    "engine_args",
)


class Settings(ServerSettings):
    """Explains a question and its answer."""

    model_config = SettingsConfigDict(env_prefix="RLT_TEACHER_")

    port: int = Field(8001, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: str = Field(min_length=1, description="name or folder of the teacher: tokenizer, and weights for their hash")
    engine: StrList = Field(
        [IN_PROCESS],
        description="`transformers`: in this process; `launch`: vLLM servers that this one starts; or addresses of "
        "vLLM servers that all serve the model, separated by commas (http://…, https://…, unix:/path/to/socket)",
    )
    engine_model: str | None = Field(None, description="what vLLM calls the model; the one it serves if left out")
    engine_key: SecretStr | None = Field(None, description="vLLM's own key, where it was given one (--api-key)")
    engine_concurrency: int = Field(
        512, ge=1, description="requests at one vLLM at once; twice its --max-num-seqs keeps its batches full"
    )
    engine_timeout_s: float = Field(
        1800.0, gt=0, description="seconds for one sample at vLLM: 16,000 tokens at 20 tokens a second, and a queue"
    )
    engine_max_waiting: int = Field(
        1024,
        ge=1,
        description="samples in an engine's queue; where every engine has more, requests get 429. Four of the largest "
        "requests: batches stay full and nobody waits for hours",
    )
    engine_drain_s: float = Field(
        300.0,
        gt=0,
        description="seconds that requests get to end before an engine is given other weights; then 409 policy_busy. "
        "Longer than most explanations take",
    )
    engine_load_s: float = Field(
        900.0, gt=0, description="seconds for an engine to load a policy: a hundred gigabytes over a network"
    )
    engine_replicas: int = Field(1, ge=1, description="launch: vLLM servers, each with GPUs of its own")
    engine_python: Path | None = Field(
        None,
        description="launch: interpreter that has vLLM, .engine/bin/python after `make engine`; the server's own if "
        "left out",
    )
    engine_device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="launch: what vLLM must have been built for; auto takes what it was"
    )
    engine_tensor_parallel: int = Field(1, ge=1, description="launch: GPUs of one replica, which share the model")
    engine_max_model_len: int | None = Field(
        None, ge=2, description="launch: tokens of prompt and completion at most; the model's own limit if left out"
    )
    engine_max_loras: int = Field(
        4,
        ge=0,
        description="launch: adapters in one batch of an engine; more are loaded and take turns. 0: none at all",
    )
    engine_max_lora_rank: int = Field(
        64,
        description="launch: highest rank of an adapter; a higher limit takes memory. The paper's teachers have none",
    )
    engine_memory_mib: int | None = Field(
        None,
        ge=64,
        description="launch: MiB for keys and values of one replica; if left out 4096 on a CPU, and on a GPU what "
        "--engine-gpu-memory leaves",
    )
    engine_gpu_memory: float = Field(
        0.9,
        gt=0,
        le=1,
        description="launch: share of a GPU's memory for one replica, weights included (vLLM's own is 0.92)",
    )
    engine_start_s: float = Field(
        1800.0,
        gt=0,
        description="launch: seconds until a started vLLM has given a token: 140 GB over a network, compiled",
    )
    engine_args: str = Field(
        "",
        description='launch: more flags for `vllm serve`, as in a shell: --engine-args="--max-num-seqs 64". They win '
        "over what it is told anyway, on GPUs --stream-interval 4 for example (a stream's tokens come by four)",
    )
    formats: Path | None = Field(None, description="folder of your own prompt formats (*.toml)")
    format: str = Field("stratos", description="format of requests that name none; the model must be able to take it")
    reward_url: str | None = Field(None, description="reward server, which scores explanations where asked to")
    reward_key: SecretStr | None = Field(None, description="key for the reward server (scope `reward`)")
    reward_timeout_s: float = Field(
        300.0, gt=0, description="seconds for one score, retries included; a long explanation takes a second on a GPU"
    )
    max_tokens: int = Field(
        16_384, ge=1, description="budget of requests that name none (the paper's), cut to the room in the context"
    )
    max_samples: int = Field(4096, ge=1, description="samples being made or waiting; beyond that requests get 429")
    policy_state: Path | None = Field(
        None, description="file that remembers the policies over a restart; they are forgotten if left out"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="in this process, and launch: numbers of the weights; auto takes the checkpoint's, but float32 "
        "for a vLLM on a CPU: its log-probs then agree with a trainer's to 1e-5, in bfloat16 to 0.1",
    )
    device: str = Field("auto", description="in this process: cpu, cuda, cuda:1, …; auto takes the first GPU there is")
    threads: int | None = Field(
        None,
        ge=1,
        description="in this process, and launch: threads of one forward pass on a CPU; OMP_NUM_THREADS, or all cores, "
        "if left out",
    )
    batch_tokens: int = Field(
        32_768,
        ge=1,
        description="in this process: prompts and budgets of all that runs at once; a larger sample runs alone",
    )
    batch_window_ms: float = Field(
        5.0, ge=0, le=1000, description="in this process: how long an idle engine waits for company"
    )

    @field_validator("engine")
    @classmethod
    def _engines(cls, engines: list[str]) -> list[str]:
        alone = [engine for engine in engines if engine in (IN_PROCESS, LAUNCH)]
        if alone and len(engines) > 1:
            raise ValueError(f"`{alone[0]}` stands alone (--engine-replicas says how many)")
        addresses = [engine if engine in alone else _address(engine) for engine in engines]
        if not addresses or len(set(addresses)) < len(addresses):
            raise ValueError("must name an engine" if not addresses else "names an engine twice")
        return addresses

    @field_validator("engine_max_lora_rank")
    @classmethod
    def _a_rank(cls, rank: int) -> int:
        if rank not in LORA_RANKS:
            raise ValueError(f"must be one of {', '.join(map(str, LORA_RANKS))}: vLLM takes no other")
        return rank

    @field_validator("engine_args")
    @classmethod
    def _flags(cls, args: str) -> str:
        try:
            words = shlex.split(args)
        except ValueError as error:
            raise ValueError(f"is no line of a shell: {error}") from error
        for word in words:
            if (setting := OURS.get(word.split("=")[0])) is not None:
                raise ValueError(f"{word.split('=')[0]} is {setting}")
        return args

    @model_validator(mode="after")
    def _launched(self) -> Self:
        """What only one kind of engine heeds must not be said in vain."""
        said = [name for name in LAUNCH_ONLY if name in self.model_fields_set]
        if said and self.engine != [LAUNCH]:
            raise ValueError(f"--{said[0].replace('_', '-')} goes with --engine {LAUNCH}")
        if "device" in self.model_fields_set and self.engine != [IN_PROCESS]:
            raise ValueError(f"--device goes with --engine {IN_PROCESS}")
        if self.engine_key is not None and self.engine in ([IN_PROCESS], [LAUNCH]):
            raise ValueError("--engine-key goes with addresses: what this server starts asks for none")
        return self

    @model_validator(mode="after")
    def _a_request_fits(self) -> Self:
        if self.max_samples < MAX_SAMPLES:
            raise ValueError(f"max_samples ({self.max_samples}) must hold one request: at least {MAX_SAMPLES}")
        return self

    @model_validator(mode="after")
    def _keys_fit_a_header(self) -> Self:
        """Told without the key: what a field's own validator refuses is shown."""
        for name, key in (("engine", self.engine_key), ("reward", self.reward_key)):
            if key and not (key.get_secret_value().isascii() and key.get_secret_value().isprintable()):
                raise ValueError(f"--{name}-key must be of printable ASCII characters: is there a line break in it?")
        return self

    @property
    def engine_flags(self) -> tuple[str, ...]:
        return tuple(shlex.split(self.engine_args))


def _address(engine: str) -> str:
    """Raises ValueError."""
    if not engine.startswith(SCHEMES):
        raise ValueError(f"{engine!r} is neither `{IN_PROCESS}`, `{LAUNCH}` nor an address (http://…, unix:/…)")
    if engine.startswith("unix:") and len(engine.removeprefix("unix:").encode()) > LONGEST_SOCKET:
        raise ValueError(f"a Unix socket's path has at most {LONGEST_SOCKET} bytes")
    if engine.startswith("http"):
        _check_url(engine)
    return engine.rstrip("/")


def _check_url(engine: str) -> None:
    """Raises ValueError."""
    parts = urlsplit(engine)
    try:
        fine = parts.hostname and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:  # of its port
        fine = False
    if not fine:
        raise ValueError(f"{engine!r} is no address: http://host:port")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError(f"{engine!r}: leave out /v1, there is more than that to ask of vLLM")
