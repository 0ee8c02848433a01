"""`rlt demo`: the main job on real input, told step by step."""
