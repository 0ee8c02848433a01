"""For your own tests: a platform that computes nothing and answers in the right shapes.

    fake = FakePlatform(reward=lambda item: -float(len(item.explanation or "")))
    async with AsyncRewardClient("http://fake", transport=fake.transport()) as reward: …
    with fake.serve() as url: …   # the same over a real socket, for programs that you start

It keeps the wire format, the order and number of items, per-item errors, ids, which spec was asked for, and the order
of the events of a stream. It keeps no property of a real reward: what an explanation is worth is what your function
says.
"""

from rlt_client.testing.platform import FakePlatform
from rlt_client.testing.scores import hashed_reward, make_score

__all__ = ["FakePlatform", "hashed_reward", "make_score"]
