"""The paper in miniature: warm-up, teachers by reinforcement, traces, students, as users of the platform run them.

    python -m rlt_paper small     one seed of the parts task, the five arms that carry the claim
    python -m rlt_paper full      seeds 1 to 3 of both tasks, every arm; goes on where it was left
    python -m rlt_paper report    docs/paper/README.md and its plots, from the records

Every finished piece is a record, which is not made again: in docs/paper/records, or for `small` below its work folder,
.rlt-paper/small, where models, traces and logs stay too. `--records` and `--work` name other folders.
"""
