"""Labels that are sharded over processes are ranked as by one."""

import pytest

from tests import commands


@pytest.mark.parametrize("processes", [2, 3])
def test_shards_answer_as_one_search_of_all_labels(processes):
    """Equal scores, removed pairs, fewer labels than processes, no points; the worker compares."""
    commands.launch(processes, "-m", "tests.sharding_worker")
