"""What a run needs of a device's memory and of the disk, reckoned from the shape of the model.

States of AdamW follow the accounting of ZeRO (arXiv 1910.02054, section 3.1). Activations are the tensors that autograd
keeps of a decoder with RMSNorm, rotary embeddings, fused attention and a gated feed-forward, in the manner of arXiv
2205.05198, section 4; a test compares them with what autograd really keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rlt_trainer.config.sections import Strategy
from rlt_trainer.shapes import Shape

__all__ = ["Load", "Use", "activations", "cache", "device", "disk", "output_layer", "states"]

FLOAT32: Final = 4  # bytes
_ADAM: Final = 2 * FLOAT32  # two moments of each parameter
TILE: Final = (4096, 32_768)  # tokens and words that TRL 1.16 projects at once (trl.kernels.chunked_logprob)
_ZERO: Final = (Strategy.zero1, Strategy.zero2, Strategy.zero3)


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes, and what they are for."""

    name: str
    bytes: float


@dataclass(frozen=True, slots=True)
class Load:
    """How a model is trained.

    Attributes:
        width: bytes of a number that is computed with.
        tokens: of a micro-batch of one process.
        reference: whether another model of the same shape is held beside it.
    """

    strategy: Strategy
    processes: int
    width: int
    tokens: int
    recompute: bool
    reference: bool = False

    @property
    def mixed(self) -> bool:
        return self.width < FLOAT32

    def shares(self) -> tuple[int, int, int]:
        """Among how many processes weights, gradients and the optimizer's state are divided."""
        n = self.processes
        return {
            Strategy.ddp: (1, 1, 1),
            Strategy.zero1: (1, 1, n),
            Strategy.zero2: (1, n, n),
            Strategy.zero3: (n, n, n),
            Strategy.fsdp: (n, n, n),
        }[self.strategy]


def device(shape: Shape, load: Load) -> list[Use]:
    """What is in the memory of each process's device when an update needs most."""
    uses = [*states(shape, load), activations(shape, load), output_layer(shape, load)]
    return [use for use in uses if use.bytes]


def states(shape: Shape, load: Load) -> Iterable[Use]:
    """Weights, gradients and what the optimizer keeps."""
    weights, gradients, optimizer = load.shares()
    deepspeed = load.strategy in _ZERO and load.mixed
    wide = load.width if deepspeed else FLOAT32  # DeepSpeed keeps the float32 copy with the optimizer's state
    yield Use(f"weights ({8 * wide} bit)", wide * shape.parameters / weights)
    yield Use("gradients", wide * shape.trained / gradients)
    kept, name = (_ADAM + FLOAT32, "AdamW: moments and weights") if deepspeed else (_ADAM, "AdamW: two moments")
    yield Use(name, kept * shape.trained / optimizer)
    if load.reference:
        yield Use("reference model", FLOAT32 * shape.parameters / weights)
    if load.strategy is Strategy.ddp and load.processes > 1:
        yield Use("gradients on their way (DDP)", FLOAT32 * shape.trained)
    if weights > 1:
        yield Use("layer that is gathered", load.width * shape.biggest_unit)
    if load.strategy is Strategy.ddp and load.mixed:
        yield Use("weights as computed with", load.width * (shape.trained or shape.parameters / shape.layers))


def activations(shape: Shape, load: Load) -> Use:
    """What autograd keeps between forward and backward, without the output layer."""
    autocast = load.mixed and load.strategy is Strategy.ddp  # FSDP and DeepSpeed cast weights, so all else follows
    stream = FLOAT32 if autocast or not load.mixed else load.width
    inputs = 5 if autocast else 2  # autocast makes a copy of its input for each of q, k, v, gate and up
    norms = 2 * (FLOAT32 + stream) * shape.hidden
    linear = inputs * shape.hidden + 2 * (shape.queries + shape.keys) + 4 * shape.feed_forward
    layer = load.tokens * (norms + load.width * linear)
    if load.recompute:
        return Use("activations (recomputed)", load.tokens * shape.layers * stream * shape.hidden + layer)
    return Use("activations", shape.layers * layer)


def output_layer(shape: Shape, load: Load) -> Use:
    """TRL's, by tiles: no logits of whole texts, but float32 gradients of its input and of its weights."""
    tile = load.width * min(load.tokens, TILE[0]) * min(shape.vocabulary, TILE[1])
    gradients = FLOAT32 * shape.hidden * (load.tokens + (0 if shape.frozen else shape.vocabulary))
    return Use("output layer", load.width * load.tokens * shape.hidden + tile + gradients)


def disk(shape: Shape, load: Load, *, checkpoints: int, versions: int, moves: bool) -> list[Use]:
    """What the run's folders grow to; one more than are kept is there while the next is written. The finished model of
    an adapter is both: the adapter, and its sum with the base.

    Args:
        versions: of published weights that are kept.
        moves: whether checkpoints hold the reference model.
    """
    one = (FLOAT32 + _ADAM) * shape.trained + (FLOAT32 * shape.parameters if moves else 0)
    uses = [Use("checkpoints", (checkpoints + 1) * one if checkpoints else 0)]
    uses.append(Use("published versions", (versions + 1) * load.width * shape.trained if versions else 0))
    adapter = shape.trained if shape.frozen else 0
    return [*(use for use in uses if use.bytes), Use("finished model", load.width * (shape.parameters + adapter))]


def cache(shape: Shape, width: int, tokens: int) -> Use:
    """Keys and values of all tokens that are generated together."""
    return Use("keys and values", 2 * shape.layers * shape.keys * width * tokens)
