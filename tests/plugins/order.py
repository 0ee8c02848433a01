"""Which tests stay in one process, and which of these groups is begun first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

STARTED_ONCE = {"contract", "integration", "reward_server"}  # folders whose tests share vLLM, a stack, scored models
TEST_S = 0.1  # of two quiet cores: a test as most are

# Groups that take long for their number of tests: about how many seconds. Begun last, one would leave a core idle.
LONG = {
    "reward_server": 200,
    "contract": 110,
    "integration": 90,
    "tests/jobs/test_whole.py": 25,
    "tests/teacher_server/test_launch.py": 22,
    "tests/common/test_server.py": 18,
    "tests/client/integrations/test_trl_run.py": 10,
    "tests/packaging/test_import_rule.py": 10,
    "tests/teacher_server/test_policies_http.py": 9,
    "tests/reward_server/compat/test_own_clients.py": 8,
}


class LongestFirst(LoadScopeScheduling):
    """A group of tests goes to one process: the tests of a file, or of a folder that starts something once.

    Not `--dist loadgroup`: pytest-xdist 3.8 marks groups in node ids, which pytest 9.2 does not let it change.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        longest = max(self.workqueue, key=lambda name: seconds(name, len(self.workqueue[name])))
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)


def group(nodeid: str) -> str:
    """Folder or file."""
    file = nodeid.partition("::")[0]
    folder = file.split("/")[-2]
    return folder if folder in STARTED_ONCE else file


def seconds(name: str, tests: int) -> float:
    """About how long a group will take."""
    return max(LONG.get(name, 0), TEST_S * tests)
