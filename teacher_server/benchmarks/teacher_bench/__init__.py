"""Benchmarks of the teacher service. `make bench-teacher` runs them and writes docs/benchmarks.md.

python -m teacher_bench overhead   streams through the service and straight to the engine: tokens/s, first token
python -m teacher_bench overlap    explain and score at once, against generation alone and one after the other
python -m teacher_bench memory     500 streams at once, again and again
python -m teacher_bench real       the overhead with the real vLLM on this machine's processor
python -m teacher_bench report     the page, from the records
"""
