"""GRPO by TRL, with completions and rewards from services."""
