"""`rlt-trainer rl`: one session, or one for each turn of co-training."""

from __future__ import annotations

from pathlib import Path

from anyio.from_thread import BlockingPortal, start_blocking_portal
from transformers.utils import logging as transformers_logging

from rlt_trainer.config.rl import RLConfig
from rlt_trainer.rl.session import Session
from rlt_trainer.rl.turns import TurnOver, Turns
from rlt_trainer.stopping import Stop

__all__ = ["run"]


def run(config: RLConfig) -> Path:
    """Train; go on from the newest checkpoint where there is one.

    Returns:
        The folder of the finished model.

    Raises:
        RLTError: see `rlt_trainer.errors` and `rlt_client.errors`.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of each model written: one a step
    turns = Turns(config) if config.turns else None
    with Stop() as stop, start_blocking_portal() as portal:
        while isinstance(ended := _train(config, portal, stop, turns), TurnOver):
            assert turns is not None
            portal.call(turns.exchange, ended, turns.distil(ended), stop)
            config = _going_on(config)
        return ended


def _going_on(config: RLConfig) -> RLConfig:
    """The next turn goes on from the checkpoint of the last one, whatever the run was told of earlier runs."""
    return config.model_copy(update={"checkpoints": config.checkpoints.model_copy(update={"resume": True})})


def _train(config: RLConfig, portal: BlockingPortal, stop: Stop, turns: Turns | None) -> Path | TurnOver:
    """To the end of the run or of a turn; nothing of the model and its optimizer is held after that."""
    session = Session(config, portal, stop, turns)
    try:
        return session.train()
    except TurnOver as over:
        session.explain(over)
        return over.with_traceback(None)
    finally:
        session.close()
