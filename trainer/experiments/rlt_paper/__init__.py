"""The paper in miniature: warm-up, teachers by reinforcement, traces, students, as users of the platform run them.

    python -m rlt_paper small     one seed of the parts task, the five arms that carry the claim
    python -m rlt_paper full      seeds 1 to 3 of both tasks, every arm; goes on where it was left
    python -m rlt_paper report    docs/paper/README.md and its plots, from the records

Every finished piece is a record in docs/paper/records, which is not made again. Models, traces and logs stay in the
work folder.
"""
