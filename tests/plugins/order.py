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
    "reward_server": 170,
    "contract": 110,
    "integration": 90,
    "tests/teacher_server/test_launch.py": 28,
    "tests/jobs/test_whole.py": 25,
    "tests/common/test_server.py": 18,
    "tests/reward_server/compat/test_rules.py": 18,
    "tests/jobs/test_publish.py": 16,
    "tests/teacher_server/test_fuzz.py": 16,
    "tests/jobs/test_files.py": 14,
    "tests/jobs/test_upgrades.py": 12,
    "tests/client/integrations/test_trl_run.py": 10,
    "tests/packaging/test_import_rule.py": 10,
    "tests/common/test_connections.py": 9,
    "tests/local/test_cli.py": 9,
    "tests/local/test_supervisor.py": 9,
    "tests/teacher_server/test_policies_http.py": 9,
    "tests/jobs/test_rescore.py": 8,
    "tests/reward_server/compat/test_own_clients.py": 8,
    "tests/teacher_server/test_embedded_engine.py": 8,
    "tests/teacher_server/test_embedded_policies.py": 8,
    "tests/teacher_server/test_reading_stream.py": 8,
    "tests/jobs/test_check.py": 7,
    "tests/jobs/test_commands.py": 7,
    "tests/jobs/test_export.py": 7,
    "tests/jobs/test_retry.py": 7,
    "tests/jobs/test_store_s3.py": 7,
    "tests/local/test_store.py": 7,
    "tests/common/test_telemetry.py": 6,
    "tests/jobs/test_delete.py": 6,
    "tests/jobs/test_rerank.py": 6,
    "tests/local/test_plan.py": 6,
    "tests/trainer/test_sft.py": 6,
    "tests/trainer/test_paper_miniature.py": 6,
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
