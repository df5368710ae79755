"""The blocks of an array: how they are cut, written, checked and missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.errors import CorruptBlock, IncompleteCapture
from dynamo_plugin.store import ArrayBlocks, BlockRecord
from dynamo_plugin.store._blocking import BLOCK_BYTES, chunk_rows, text_chunk_rows
from dynamo_plugin.store._blocks import Identity
from dynamo_plugin.store._documents import ArrayLayout
from dynamo_plugin.store._location import locate
from dynamo_plugin.store._strays import clear, strays


def layout_of(rows: int, units: int, dtype: str = "float32") -> ArrayLayout:
    return ArrayLayout("states/s", (rows, units), dtype, ("row", "unit"))


@given(
    rows=st.integers(1, 10**9),
    units=st.integers(1, 10**7),
    samples=st.none() | st.integers(1, 10**5),
    batch=st.integers(1, 300),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_rows_per_block(rows: int, units: int, samples: int | None, batch: int, dtype: str) -> None:
    """One sample is `samples` rows here, where all have equally many."""
    total = rows if samples is None else rows * samples
    layout = layout_of(total, units, dtype)
    size = chunk_rows(layout, sample_rows=samples, batch_size=batch)
    assert 1 <= size <= total
    assert size == 1 or size * layout.row_bytes <= 2 * BLOCK_BYTES
    fitting = max(BLOCK_BYTES // layout.row_bytes, 1)
    if samples is None:
        assert size == min(total, fitting)
    elif size < total and samples * layout.row_bytes <= 2 * BLOCK_BYTES:
        # whole batches, or whole samples of which a batch is a multiple
        assert size % samples == 0
        assert size % (samples * batch) == 0 or (samples * batch) % size == 0
    elif size < total:
        assert size == fitting


def test_text_is_cut_by_number() -> None:
    assert text_chunk_rows(ArrayLayout("t", (70_000,), "string", ("sample",))) == 65_536
    assert text_chunk_rows(ArrayLayout("t", (7,), "string", ("sample",))) == 7


def array(store: Any, rows: int = 10, size: int = 4) -> ArrayBlocks:
    identity = Identity("inputs", "model", "config")
    location = locate(store, create=True)
    return ArrayBlocks(location, layout_of(rows, 2), size, identity, "site 's'")


def fill(blocks: ArrayBlocks) -> list[BlockRecord]:
    records = []
    for block in range(blocks.count):
        start, stop = blocks.bounds(block)
        rows = np.arange(2 * start, 2 * stop, dtype=np.float32).reshape(-1, 2)
        records.append(blocks.write(block, [rows[:1], rows[1:]]))
        blocks.commit(records[-1])
    return records


def test_a_block_is_its_data_and_then_its_record(tmp_path: Path) -> None:
    blocks = array(tmp_path)
    assert blocks.count == 3
    assert [blocks.bounds(block) for block in range(3)] == [(0, 4), (4, 8), (8, 10)]
    rows = np.arange(4, dtype=np.float32).reshape(2, 2)
    record = blocks.write(2, [rows])
    data = rows.tobytes() + bytes(16)  # the padding
    assert (tmp_path / "states/s/c.2.0").read_bytes() == data
    assert record == BlockRecord(2, 32, f"{google_crc32c.value(data):08x}", zero=False)
    assert isinstance(next(blocks.records([2])), IncompleteCapture)
    assert blocks.missing() == [0, 1, 2]
    blocks.commit(record)
    assert list(blocks.records([2])) == [record]
    assert blocks.missing() == [0, 1]
    stored = json.loads((tmp_path / "states/s/commits/2.json").read_bytes())
    assert stored["rows"] == [8, 10]
    assert stored["shape"] == [2, 2]
    assert (stored["model_hash"], stored["config_hash"]) == ("model", "config")
    blocks.withdraw(2)
    assert blocks.missing() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zero_is_noted_whatever_its_sign(dtype: str) -> None:
    layout = layout_of(4, 2, dtype)
    blocks = ArrayBlocks(locate({}, create=True), layout, 4, Identity("i"), "x")
    zeros = np.zeros((4, 2), dtype=dtype)
    assert blocks.write(0, [zeros]).zero
    assert blocks.write(0, [-zeros]).zero
    tiny = zeros.copy()
    tiny[3, 1] = np.nextafter(zeros[0, 0], np.ones((), dtype=dtype))
    assert tiny[3, 1] > 0  # the smallest subnormal
    assert not blocks.write(0, [tiny[:2], tiny[2:]]).zero


def test_what_is_missing_and_what_is_damaged(tmp_path: Path) -> None:
    blocks = array(tmp_path, rows=28)
    fill(blocks)
    folder = tmp_path / "states/s"
    (folder / "commits/0.json").unlink()
    (folder / "commits/1.json").write_bytes(b"{}")
    (folder / "c.2.0").unlink()
    (folder / "c.3.0").write_bytes(b"short")
    (folder / "c.4.0").write_bytes(bytes(32))  # of the right size
    (folder / "c.5.0").unlink()
    (folder / "c.5.0").symlink_to("/etc/hostname")
    assert blocks.missing() == [0, 1, 2, 3, 5]
    assert list(blocks.damaged([4, 6])) == [4]
    with pytest.raises(CorruptBlock, match="changed or cut short"):
        list(blocks.records([6, 1]))


def test_records_are_tied_to_everything_they_vouch_for() -> None:
    store: dict[str, Any] = {}
    fill(array(store))
    others: dict[str, ArrayBlocks] = {
        "inputs_hash": ArrayBlocks(
            locate(store, create=True), layout_of(10, 2), 4, Identity("x", "model", "config"), "s"
        ),
        "model_hash": ArrayBlocks(
            locate(store, create=True), layout_of(10, 2), 4, Identity("inputs", "x", "config"), "s"
        ),
        "config_hash": ArrayBlocks(
            locate(store, create=True), layout_of(10, 2), 4, Identity("inputs", "model", "x"), "s"
        ),
        "rows": array(store, rows=9),
        "dtype": ArrayBlocks(
            locate(store, create=True),
            layout_of(10, 2, "float64"),
            4,
            Identity("inputs", "model", "config"),
            "s",
        ),
    }
    for field, other in others.items():
        with pytest.raises(CorruptBlock, match=f"says {field} ="):
            list(other.records(range(other.count)))
        assert other.missing()


def test_strays_are_found_and_cleared(tmp_path: Path) -> None:
    blocks = array(tmp_path)
    fill(blocks)
    folder = tmp_path / "states/s"
    assert strays(blocks) == []
    for name in ("c.3.0", "c.01.0", "c.1", "c.1.0.0", "c.1.1", "x", "commits/3.json", "commits/x"):
        (folder / name).write_bytes(b"x")
    (folder / "c").mkdir()
    (folder / "c" / "0").write_bytes(b"x")
    (folder / ".hidden").write_bytes(b"x")
    (folder / "link").symlink_to("/etc")
    (folder / f"c.1.0.{'f' * 32}.partial").write_bytes(b"x")
    found = {key.removeprefix("states/s/") for key in strays(blocks)}
    assert found == {
        *("c", "c.3.0", "c.01.0", "c.1", "c.1.0.0", "c.1.1", "x", "link"),
        *("commits/3.json", "commits/x"),
    }
    clear(blocks)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert left == {".hidden", "commits"} | {
        name for n in range(3) for name in (f"c.{n}.0", f"commits/{n}.json")
    }
    assert Path("/etc").is_dir()
    assert blocks.missing() == []
