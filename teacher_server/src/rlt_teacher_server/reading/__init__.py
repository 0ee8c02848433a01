"""What a sample says: from token ids to the explanation, as a whole and while it is being written. Pure."""

from rlt_teacher_server.reading.leaks import find_leaks
from rlt_teacher_server.reading.loops import Loop, find_loop
from rlt_teacher_server.reading.sample import Reading, read_sample
from rlt_teacher_server.reading.stream import ExplanationText

__all__ = ["ExplanationText", "Loop", "Reading", "find_leaks", "find_loop", "read_sample"]
