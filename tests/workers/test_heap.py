"""The collector around what is loaded, seen in a process of its own: it is switched for the whole process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_PROGRAM = """
import gc, json, sys
from specbatch.workers.heap import made_to_stay

found = {"threshold_before": gc.get_threshold()}
kept = []
try:
    with made_to_stay():
        found["enabled_within"] = gc.isenabled()
        kept.append([[] for _ in range(1000)])
        if sys.argv[1] == "raise":
            raise LookupError("as a model that cannot be loaded")
except LookupError as error:
    found["raised"] = str(error)
later = [[]]
found |= {"enabled": gc.isenabled(), "frozen": gc.get_freeze_count(), "threshold": gc.get_threshold()}
walked = {id(each) for each in gc.get_objects()}  # without what was frozen
found |= {"walks_kept": id(kept[0]) in walked, "walks_later": id(later) in walked}
print(json.dumps(found))
"""


@pytest.mark.parametrize("how", ["return", "raise"])
def test_the_collector_rests_then_works_again_and_leaves_what_was_there_alone(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert ("raised" in found) == (how == "raise"), "an error goes through"
    assert not found["enabled_within"]
    assert found["enabled"]
    assert found["frozen"] > 1000
    assert not found["walks_kept"]
    assert found["walks_later"]
    assert found["threshold"] == [20_000, *found["threshold_before"][1:]]
