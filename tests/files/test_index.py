"""The compact tables: right, small, and safe with wild numbers."""

import random
import sys

import pytest

from llmbatch.files.index import IdentityIndex, IdentitySet, RowTable, identity_hash, identity_text

N = 40_000  # several splits of the table


@pytest.fixture(scope="module")
def keys():
    edge = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    chance = random.Random(7)
    return edge + [chance.getrandbits(64) for _ in range(N)]


def test_index_agrees_with_a_dict(keys):
    index, truth, chance = IdentityIndex(), {}, random.Random(1)
    for value, key in enumerate(keys):
        assert index.add(key, value) is None
        truth[key] = value
    for key in chance.sample(keys, 5000):
        index[key] = truth[key] = chance.getrandbits(64)
    assert len(index) == len(truth)
    assert all(index.get(key) == value for key, value in truth.items())
    assert all(index.get(key ^ 0x5555) is None for key in keys if key ^ 0x5555 not in truth)


def test_adding_a_known_key_changes_nothing_and_tells_what_is_there():
    index = IdentityIndex()
    assert index.add(5, 10) is None
    assert index.add(5, 11) == 10
    assert (index.get(5), len(index)) == (10, 1)


def test_set_tells_what_is_new(keys):
    seen = IdentitySet()
    assert all(seen.add(key) for key in keys)
    assert not any(seen.add(key) for key in keys)
    assert len(seen) == len(keys)


def payload_bytes(arrays):
    return sum(sys.getsizeof(part) for part in arrays) + sys.getsizeof(arrays)


@pytest.mark.parametrize("entries", [60_000, 66_000, 100_000], ids=["before-split", "after-split", "between"])
def test_memory_per_entry_is_small_at_every_size(entries):
    chance = random.Random(3)
    index, seen = IdentityIndex(), IdentitySet()
    for value in range(entries):
        key = chance.getrandbits(64)
        index.add(key, value)
        seen.add(key)
    assert (payload_bytes(index._keys) + payload_bytes(index._values)) / entries <= 25
    assert payload_bytes(seen._segments) / entries <= 13
    assert max(map(len, [*index._keys, *seen._segments])) < 2000  # short enough to shift quickly


def test_ids_of_different_types_are_different_rows():
    texts = [identity_text(id, 1) for id in ("1", 1, 1.0, None, "#1", "i:1")]
    assert len(set(texts)) == len(texts)
    assert identity_text(None, 17) == "#17"
    assert identity_text(2**80, 1) == f"i:{2**80}"


def test_identity_hash_never_changes_and_takes_any_text():
    assert identity_hash("s:r17") == 0xEE69111F405881E4
    assert identity_hash(17) == identity_hash("#17") == 0x935D5A420C9533E7
    assert identity_hash("s:\ud800") != identity_hash("s:")
    assert identity_hash("s:r17", salt=1) not in (identity_hash("s:r17"), identity_hash("s:r17", salt=2))


def test_row_table_keeps_offsets_and_costs_a_page_for_a_wild_number():
    table = RowTable()
    for row, offset in ((1, 0), (4096, 50), (10**15, 7)):
        table.set(row, offset)
    assert [table.get(row) for row in (1, 2, 4096, 10**15, 10**15 + 1)] == [0, None, 50, 7, None]
    assert sorted(table.above(1)) == [7, 50]
    assert table.above(4096) == [7]
    table.set(1, None)
    assert table.get(1) is None
    assert len(table._pages) == 3
