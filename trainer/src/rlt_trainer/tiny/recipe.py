"""Every number of the miniature, each with its reason.

The miniature re-stages "Reinforcement Learning Teachers of Test Time Scaling" (arXiv 2506.08388) with a decoder that
trains in minutes on one core: there are no pre-trained weights anywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama decoder of 147,328 parameters, 0.6 MB in float32."""

    hidden_size: int = 64  # the smallest width that learned the facts in a minute
    num_hidden_layers: int = 3  # one to look an operation up, one to apply it, one to spare
    num_attention_heads: int = 2  # head_dim 32: vLLM on CPU refuses 16
    num_key_value_heads: int = 2  # no grouping: nothing to save at this size
    intermediate_size: int = 160  # 2.5 times the width
    max_position_embeddings: int = 256  # the longest text has 43 tokens; the rest is room for bad input in tests
    rope_theta: float = 1000.0  # texts are short: positions must differ quickly
    initializer_range: float = 0.05  # with the usual 0.02 the facts sit on a plateau for 600 steps, at this width


@dataclass(frozen=True, slots=True)
class Fitting:
    """One stretch of training by AdamW: linear warm-up, then a cosine to zero."""

    steps: int
    learning_rate: float
    batch_size: int = 64  # documents of about 40 tokens
    warmup_steps: int = 50  # without it rates above 2e-3 diverge
    beta2: float = 0.99  # a few hundred steps: .999 would average over all of them
    weight_decay: float = 0.01  # AdamW's default
    clip: float = 1.0  # largest norm of the gradient


@dataclass(frozen=True, slots=True)
class BaseRecipe:
    """Pre-training: one operation can be looked up and applied; no chain, question or explanation is ever seen."""

    shape: ModelShape = ModelShape()
    fitting: Fitting = Fitting(steps=600, learning_rate=4e-3)  # passes from step 400 on
    fact_share: float = 0.6  # the 488 facts are the hard part
    lookup_share: float = 0.3
    copy_share: float = 0.1
    document_tokens: int = 40  # the length of a question with its explanation
    gate: float = 0.99  # below it nothing built on the base works: take the next seed
    attempts: int = 4  # seeds tried before giving up


@dataclass(frozen=True, slots=True)
class Mixture:
    """How each step of a corpus trace is written, drawn independently; shares sum to 1."""

    good: float = 0.50  # .5^4: about 6 % of the traces are good throughout, which is what RL can select from
    skip: float = 0.30
    leak: float = 0.10  # enough for a leak to be a temptation, too little to be the style of the corpus
    wrong: float = 0.10
    digression: float = 0.15  # before each step
    longest_digression: int = 4
    longest_trace: int = 27  # tokens of thought; a good trace has 13


@dataclass(frozen=True, slots=True)
class WarmupRecipe:
    """Supervised warm-up of ONE model on both formats: first teacher, GRPO reference and frozen reward student."""

    mixture: Mixture = Mixture()
    corpus: int = 10_000  # questions, one trace each
    # 35 s. After 600 steps one trace in five is good already, and RL would have little left to select
    fitting: Fitting = Fitting(steps=400, learning_rate=3e-3)
    seed: int = 0


def as_json(recipe: BaseRecipe | WarmupRecipe) -> dict[str, object]:
    """The recipe as plain values, for the record kept beside the weights and for cache keys."""
    return asdict(recipe)
