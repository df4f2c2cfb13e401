import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.rewards.scorers.rows import distinct_batches, padded

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=20)


@given(rows=ROWS, budget=st.integers(0, 40), room=st.integers(0, 5), random=st.randoms())
@settings(max_examples=200, deadline=None)
def test_batches_hold_each_different_row_once_within_the_budget_whatever_the_order(rows, budget, room, random):
    batches = list(distinct_batches(rows, budget, room))
    flat = [row for batch in batches for row in batch]
    assert len(flat) == len(set(flat)) and set(flat) == set(rows)
    assert [len(row) for row in flat] == sorted(map(len, set(rows)), reverse=True), "the longest first"
    assert all(len(batch) == 1 or len(batch) * (max(map(len, batch)) + room) <= budget for batch in batches)
    random.shuffle(rows)
    assert list(distinct_batches(rows, budget, room)) == batches


def test_padding_stands_on_its_side_under_the_mask():
    ids_BL, mask_BL = padded([(1, 2, 3), (4,)], 9)
    assert ids_BL.tolist() == [[1, 2, 3], [4, 9, 9]] and mask_BL.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids_BL, mask_BL = padded([(1, 2, 3), (4,)], 9, "left")
    assert ids_BL.tolist() == [[1, 2, 3], [9, 9, 4]] and mask_BL.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert ids_BL.dtype == mask_BL.dtype == torch.int64
