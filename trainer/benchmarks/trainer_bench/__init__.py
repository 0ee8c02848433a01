"""Benchmarks of the trainer. `make bench-trainer` runs them and writes docs/benchmarks.md.

python -m trainer_bench wait      time without work until the last reward is there, with and without overlap
python -m trainer_bench publish   what it costs to put new weights into the engine
python -m trainer_bench step      a step of GRPO by services against TRL's trainer on its own
python -m trainer_bench gpu       steps of models of real size on one GPU, with everything they need beside them
python -m trainer_bench report    the page, from the records
"""
