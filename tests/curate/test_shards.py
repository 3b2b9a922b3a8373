import json

import pytest

from camelid.curate.shards import BLOCK_BYTES, encode, facts_of, is_done, new_unit, read_lines
from camelid.errors import UserError


def make(unit, count=30_000):
    lines = [encode({"id": n, "text": "字" * (n % 7)}) for n in range(count)]
    with new_unit(unit) as writer:
        for line in lines:
            writer.write("rows", line)
        writer.facts = {"rows": count}
    return lines


def test_a_unit_gives_back_its_lines_and_facts(tmp_path):
    lines = make(tmp_path / "unit")
    assert sum(map(len, lines)) > 3 * BLOCK_BYTES
    assert list(read_lines(tmp_path / "unit", "rows")) == lines
    assert facts_of(tmp_path / "unit") == {"rows": 30_000}
    assert list(read_lines(tmp_path / "unit", "nothing")) == []


def test_a_line_of_many_blocks_comes_back_whole(tmp_path):
    lines = [b"short\n", b"x" * (5 * BLOCK_BYTES) + b"\n", b"y" * BLOCK_BYTES + b"\n", b"last\n"]
    with new_unit(tmp_path / "unit") as writer:
        for line in lines:
            writer.write("rows", line)
    assert list(read_lines(tmp_path / "unit", "rows")) == lines


@pytest.mark.parametrize("kept", [0, 1000, BLOCK_BYTES, BLOCK_BYTES + 17])
def test_a_truncated_file_is_an_error_that_names_file_and_offset(tmp_path, kept):
    make(tmp_path / "unit")
    path = tmp_path / "unit" / "rows"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"unit/rows is damaged at byte {kept:,}: it ends there instead.*{size:,}"):
        list(read_lines(tmp_path / "unit", "rows"))


def test_a_changed_byte_is_found_before_its_line_is_handed_out(tmp_path):
    lines = make(tmp_path / "unit")
    path = tmp_path / "unit" / "rows"
    content = bytearray(path.read_bytes())
    content[BLOCK_BYTES + 5000] ^= 1
    path.write_bytes(content)
    found = []
    with pytest.raises(UserError, match=f"damaged at byte {BLOCK_BYTES:,}: the {BLOCK_BYTES:,} bytes from there"):
        for line in read_lines(tmp_path / "unit", "rows"):
            found.append(line)
    assert found == lines[: len(found)] and 0 < len(b"".join(found)) <= BLOCK_BYTES


def test_bytes_behind_the_end_and_missing_files_are_errors(tmp_path):
    make(tmp_path / "unit")
    path = tmp_path / "unit" / "rows"
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(UserError, match=f"at byte {size:,}: it goes on there"):
        list(read_lines(tmp_path / "unit", "rows"))
    path.unlink()
    with pytest.raises(UserError, match="the file is missing"):
        list(read_lines(tmp_path / "unit", "rows"))


def test_a_damaged_marker_is_an_error(tmp_path):
    make(tmp_path / "unit", 3)
    marker = tmp_path / "unit" / "done"
    whole = marker.read_bytes()
    for damaged in (b"", whole[:-1], whole[1:], b'{"files":{},"facts":{}}', whole.replace(b"3", b"4", 1), b"[]\n"):
        marker.write_bytes(damaged)
        with pytest.raises(UserError, match=r"done is damaged at byte 0: its bytes are not .*; remove the folder"):
            list(read_lines(tmp_path / "unit", "rows"))
        with pytest.raises(UserError, match="done is damaged"):
            facts_of(tmp_path / "unit")


def test_a_unit_whose_marker_is_lost_is_made_anew(tmp_path):
    lines = make(tmp_path / "unit", 3)
    (tmp_path / "unit" / "done").unlink()
    assert not is_done(tmp_path / "unit")
    make(tmp_path / "unit", 3)
    assert list(read_lines(tmp_path / "unit", "rows")) == lines


def test_a_unit_that_an_error_ends_does_not_exist(tmp_path):
    with pytest.raises(RuntimeError), new_unit(tmp_path / "unit") as writer:
        writer.write("rows", b"{}\n")
        raise RuntimeError
    assert not is_done(tmp_path / "unit") and list(tmp_path.iterdir()) == []


def test_of_two_processes_that_make_a_unit_the_first_one_stays(tmp_path):
    with new_unit(tmp_path / "unit") as writer:
        writer.write("rows", b"1\n")
        (tmp_path / "other").mkdir()
        make(tmp_path / "other" / "unit", 3)
        (tmp_path / "other" / "unit").rename(tmp_path / "unit")
    assert len(list(read_lines(tmp_path / "unit", "rows"))) == 3
    assert not list(tmp_path.glob(".*"))


def test_lines_are_utf_8_and_lone_surrogates_are_escaped(tmp_path):
    assert encode({"a": "字"}) == '{"a":"字"}\n'.encode()
    assert json.loads(encode({"a": "\ud800"})) == {"a": "\ud800"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, object(), b"a", {(1, 2): 3}])
def test_what_json_cannot_hold_is_never_written(value):
    with pytest.raises((TypeError, ValueError)):
        encode({"a": value})
