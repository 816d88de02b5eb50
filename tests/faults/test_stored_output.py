"""What happens to an output at rest: rows 37, 38 and 48 of the fault matrix."""

from __future__ import annotations

import random
import re
import shutil

import pytest
from outputs import LocalOutput, part_keys
from whole_jobs import Place

from specbatch.jobs.verify.verify import verify_output

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def copy(output: LocalOutput, undisturbed: LocalOutput) -> LocalOutput:
    """A finished output that may be damaged."""
    shutil.copytree(undisturbed.root, output.root)
    return output


def test_corrupted_byte_in_a_part(place: Place, copy: LocalOutput) -> None:
    """Fault 38: one bit of one part; verify names the part and exits with 7."""
    key = part_keys(copy)[3]
    data = bytearray(copy.read(key))
    data[len(data) // 2] ^= 1
    copy.write(key, bytes(data))
    verified = place.run("verify", copy.uri)
    assert verified.code == 7, verified
    assert key in verified.out


def test_corrupted_byte_anywhere(copy: LocalOutput) -> None:
    """Fault 38: a changed byte at random places of everything that the job stands on."""
    chance = random.Random(4)
    keys = [
        *part_keys(copy), "manifest.json", "_SUCCESS", "_specbatch/job.json", *copy.keys("_specbatch/plan-")
    ]  # fmt: skip
    assert verify_output(copy.uri).state == "sound"
    missed = []
    for key in keys:
        original = copy.read(key)
        positions = {0, len(original) - 1, *(chance.randrange(len(original)) for _ in range(6))}
        for position in sorted(positions):
            data = bytearray(original)
            data[position] ^= 1 << chance.randrange(8)
            copy.write(key, bytes(data))
            if verify_output(copy.uri).state != "not sound":
                missed.append((key, position))
        copy.write(key, original)
    assert missed == []


def test_lost_part_after_the_commit(place: Place, copy: LocalOutput) -> None:
    """Fault 37: a part is deleted from a finished output; verify tells, and no run makes it again in silence."""
    key = part_keys(copy)[2]
    copy.delete(key)
    verified = place.run("verify", copy.uri)
    assert verified.code == 7, verified
    assert key in verified.out
    place.run_submit(copy)
    assert key not in part_keys(copy)
    assert place.run("verify", copy.uri).code == 7


@pytest.mark.parametrize("kind", ["job", "part"])
def test_output_of_another_version(place: Place, copy: LocalOutput, kind: str) -> None:
    """Fault 48: an unfinished output in which one file is of a newer format; it is refused and left as it is."""
    for name in ("manifest.json", "_SUCCESS"):
        copy.delete(name)
    first, *_, last = part_keys(copy)
    copy.delete(last)
    key = {"job": "_specbatch/job.json", "part": first}[kind]
    data = copy.read(key)
    (current,) = set(re.findall(f"specbatch/{kind}/[0-9]".encode(), data))
    copy.write(key, data.replace(current, current[:-1] + b"9"))
    before = {name: copy.read(name) for name in [*part_keys(copy), "_specbatch/job.json"]}
    ended = place.run_submit(copy)
    assert ended.code == 2, ended
    assert "JOB_FORMAT" in ended.err
    assert {name: copy.read(name) for name in [*part_keys(copy), "_specbatch/job.json"]} == before
