"""What is wrong with a running stack, in plain words: `rlt doctor`.

`look` asks the servers, as any client would, and gives facts; `judge` makes findings of them and asks nobody.
"""

from rlt_client.doctor.facts import Facts, ServerFacts
from rlt_client.doctor.findings import Finding, Level
from rlt_client.doctor.judging import judge
from rlt_client.doctor.looking import look

__all__ = ["Facts", "Finding", "Level", "ServerFacts", "judge", "look"]
