"""The file: whole after a kill, appended to by a resume, one writer at a time."""

import json
import os
import subprocess
import sys

import pytest

from repro_callbacks.fingerprint.runs import NotComparable, Run
from repro_callbacks.fingerprint.store import Writer, link, rank_path

HEAD = {
    "rank": 0,
    "world_size": 1,
    "resumed": None,
    "every": {},
    "parameters": [],
    "buffers": [],
    "record": {},
    "state": {},
}
NEW = {"step": "", "validation": ""}


def write(path, at, steps, previous=None, chains=NEW, end=False, batches=5):
    """Write a segment of steps, numbered through epochs of some batches."""
    with Writer(path) as writer:
        resumed = {"saved": None} if at > (0, 0) else None
        writer.head({**HEAD, "resumed": resumed, "at": list(at)}, previous, chains)
        begun = writer.segment
        first = at[0] * batches + at[1]
        for number in range(first, first + steps):
            epoch, batch = divmod(number, batches)
            writer.line(
                "step", {"epoch": epoch, "batch": batch, "step": number + 1, "number": number, "loss": f"{number}"}
            )
        if end:
            writer.line("end", {"state": {}})
        return begun, dict(writer.chains)


def positions(run):
    return [(line["epoch"], line["batch"]) for line in run.iterate()]


def test_lines_are_json_objects(tmp_path):
    write(tmp_path / "a", (0, 0), 7, end=True)
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["head"] + ["step"] * 7 + ["end"]
    chain = ""
    for line in lines[1:-1]:
        assert line["chain"] == (chain := link(chain, line))


def test_the_chain_sees_all_that_was_before(tmp_path):
    _, one = write(tmp_path / "a", (0, 0), 7)
    _, two = write(tmp_path / "b", (0, 0), 7)
    _, three = write(tmp_path / "c", (0, 1), 6)
    assert one == two != three


def test_what_is_for_people_is_not_in_the_chain():
    line = {"kind": "step", "epoch": 0, "batch": 0, "loss": "ab"}
    assert link("", line) == link("", {**line, "loss_value": 0.5, "rates": [1.0], "indices": [1], "segment": 3})
    assert link("", line) != link("", {**line, "loss": "ac"})


def test_a_torn_line_is_dropped_when_read_and_cut_off_when_continued(tmp_path):
    path = tmp_path / "a"
    begun, chains = write(path, (0, 0), 7)
    whole = path.read_bytes()
    for torn in (b'{"kind":"step","epo', b"x", whole[-20:-1]):
        path.write_bytes(whole + torn)
        assert positions(Run(path)) == [divmod(n, 5) for n in range(7)]
    write(path, (1, 2), 3, begun, chains)
    assert path.read_bytes().startswith(whole)
    assert positions(Run(path)) == [divmod(n, 5) for n in range(10)]


def test_every_prefix_of_a_file_can_be_read(tmp_path):
    path = tmp_path / "a"
    begun, chains = write(path, (0, 0), 3)
    write(path, (0, 2), 3, begun, chains)
    whole = path.read_bytes()
    lengths = [len(line) for line in whole.splitlines(keepends=True)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        if size < lengths[0]:
            with pytest.raises(NotComparable):
                Run(path)
        else:
            found = positions(Run(path))
            assert found == sorted(set(found))


def test_a_resume_supersedes(tmp_path):
    path = tmp_path / "a"
    begun, _ = write(path, (0, 0), 9)  # killed after (1, 3), with a checkpoint after (1, 0)
    chain = Run(path).find((1, 0))["chain"]
    second, _ = write(path, (1, 1), 3, begun, {"step": chain, "validation": ""})  # killed again after (1, 3)
    chain = Run(path).find((1, 2))["chain"]
    write(path, (1, 3), 7, second, {"step": chain, "validation": ""}, end=True)
    run = Run(path)
    assert positions(run) == [divmod(n, 5) for n in range(15)]
    assert [segment.at for segment in run.segments] == [(0, 0), (1, 1), (1, 3)]
    _, straight = write(tmp_path / "b", (0, 0), 15)
    assert run.last()["chain"] == straight["step"]
    assert run.end is not None
    again = [(old["epoch"], old["batch"]) for old, _ in run.superseded()]
    assert again == [(1, 1), (1, 2), (1, 3), (1, 3)]
    assert all(old["loss"] == new["loss"] for old, new in run.superseded())


def test_a_new_start_supersedes_all(tmp_path):
    path = tmp_path / "a"
    begun, _ = write(path, (0, 0), 9)
    write(path, (0, 0), 3, begun)
    run = Run(path)
    assert list(run.superseded()) == []
    assert positions(run) == [(0, 0), (0, 1), (0, 2)]
    assert len(run.segments) == 1
    assert len(run.all_segments) == 2


def test_lookups(tmp_path):
    path = tmp_path / "a"
    begun, chains = write(path, (0, 0), 12)
    write(path, (1, 4), 400, begun, chains)
    run, count = Run(path), 409
    for number in (0, 1, 4, 5, 8, 9, 10, 11, 12, 200, 407, 408):
        line = run.find(divmod(number, 5))
        assert line["number"] == number
        assert run.after(divmod(number, 5)) == line
        before = run.before(divmod(number, 5))
        assert (before is None) if number == 0 else before["number"] == number - 1
    assert run.find((3, 7)) is None
    assert run.after((3, 7))["number"] == 20
    assert run.before((3, 7))["number"] == 19
    assert run.after((count, 0)) is None
    assert run.last()["number"] == count - 1
    assert run.first()["number"] == 0
    assert [line["number"] for line in run.iterate("step", (1, 1), (2, 3))] == list(range(6, 13))
    assert run.first("validation") is None


def test_a_run_that_goes_on_in_another_file(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    write(tmp_path / "old" / "a", (0, 0), 8)
    chain = Run(tmp_path / "old" / "a").find((1, 0))["chain"]
    with Writer(tmp_path / "new" / "a") as writer:
        chains = {"step": chain, "validation": ""}
        writer.head({**HEAD, "at": [1, 1], "continues": os.path.join("..", "old", "a")}, None, chains)
        writer.line("step", {"epoch": 1, "batch": 1, "number": 6})
    run = Run(tmp_path / "new" / "a")
    assert positions(run) == [divmod(n, 5) for n in range(7)]
    assert run.missing is None
    (tmp_path / "old" / "a").unlink()
    run = Run(tmp_path / "new" / "a")
    assert positions(run) == [(1, 1)]
    assert run.missing == tmp_path / "old" / "a"


@pytest.mark.slow
def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "a"
    code = f"from repro_callbacks.fingerprint.store import Writer; Writer({str(path)!r}); print('open')"
    with Writer(path) as writer:
        with pytest.raises(FileExistsError, match="another run"):
            Writer(path)
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "is being written by another run" in other.stderr
        writer.close()
        writer.close()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "open\n"
    Writer(path).close()


def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    path, (read, write_end), (told, tell) = tmp_path / "a", os.pipe(), os.pipe()
    writer = Writer(path)
    child = os.fork()
    if child == 0:
        os.write(tell, b"x")
        os.close(write_end)
        os.read(read, 1)  # until the parent lets go
        os._exit(0)
    try:
        os.read(told, 1)
        with pytest.raises(FileExistsError, match="another run"):
            Writer(path)
        writer.close()
        Writer(path).close()
    finally:
        os.close(write_end)
        os.waitpid(child, 0)
        for end in (read, told, tell):
            os.close(end)


def test_another_file_is_not_touched(tmp_path):
    path = tmp_path / "notes.jsonl"
    for text in ("important\n", "[1, 2]\n", "imp"):
        path.write_text(text)
        with pytest.raises(FileExistsError, match="is not a fingerprint"):
            Writer(path)
        assert path.read_text() == text


def test_damage_is_named(tmp_path):
    path = tmp_path / "a"
    write(path, (0, 0), 3)
    path.write_bytes(path.read_bytes() + b"[]\n")
    with pytest.raises(NotComparable, match="damaged"):
        Run(path)


def test_rank_path():
    assert rank_path("x/run.jsonl", 2).as_posix() == "x/run.rank2.jsonl"
    assert rank_path("x/run.rank0.jsonl", 2).as_posix() == "x/run.rank2.jsonl"
    assert rank_path("run.ranked", 0).as_posix() == "run.ranked.rank0.jsonl"
    assert rank_path("v1.5/run", 1).as_posix() == "v1.5/run.rank1.jsonl"
