"""First factors on disk: found by content, never wrong, never in the way."""

import multiprocessing
import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from stablerank.adapters.cache import cached_factors, content_hash
from stablerank.errors import RecipeError

RECIPE = {"method": "head", "rank": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path))
    monkeypatch.delenv("STABLERANK_FACTORS_GB", raising=False)
    return tmp_path / "factors"


@pytest.fixture
def weight():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Compute:
    """Counts its calls; gives factors that fit the weight."""

    def __init__(self, weight):
        self.calls, self.factors = 0, (weight[:, :2].float().clone(), weight[:2].float().clone())

    def __call__(self):
        self.calls += 1
        return self.factors


def test_the_second_call_reads_what_the_first_computed(folder, weight):
    compute = Compute(weight)
    first = cached_factors(weight, RECIPE, compute)
    second = cached_factors(weight.clone(), dict(reversed(RECIPE.items())), compute)
    assert compute.calls == 1 and len(list(folder.iterdir())) == 1
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


def test_everything_that_counts_is_part_of_the_name(folder, weight):
    compute = Compute(weight)
    cached_factors(weight, RECIPE, compute)
    moved = weight.clone()
    moved[3, 3] = torch.nextafter(moved[3, 3], torch.tensor(9.0))
    same_bytes = torch.zeros(4, 2)
    others = [
        (moved, RECIPE),
        (weight.bfloat16(), RECIPE),
        (weight.mT, RECIPE),
        (weight, {**RECIPE, "rank": 3}),
        (weight, {**RECIPE, "rho": 0.2}),
        (same_bytes, RECIPE),
        (same_bytes.reshape(2, 4), RECIPE),
        (same_bytes.to(torch.int32), RECIPE),
    ]
    for number, (other, recipe) in enumerate(others, start=2):
        cached_factors(other, recipe, compute)
        assert compute.calls == number


def test_a_view_has_the_hash_of_its_content(weight):
    assert content_hash(weight.mT) == content_hash(weight.mT.contiguous()) != content_hash(weight)


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty", "other tensors", "not a file"])
def test_a_damaged_entry_is_computed_again_and_replaced(folder, weight, damage):
    compute = Compute(weight)
    cached_factors(weight, RECIPE, compute)
    (entry,) = folder.iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "cut off":
        entry.write_bytes(content[:-8])
    elif damage == "one bit":
        content[-3] ^= 1
        entry.write_bytes(content)
    elif damage == "empty":
        entry.write_bytes(b"")
    elif damage == "other tensors":
        save_file({"A0": weight}, entry)
    else:
        entry.unlink()
        entry.mkdir()
    if damage == "not a file":
        with pytest.warns(UserWarning, match="not cached"):
            found = cached_factors(weight, RECIPE, compute)
    else:
        found = cached_factors(weight, RECIPE, compute)
        assert torch.equal(load_file(entry)["B0"], compute.factors[0])
        cached_factors(weight, RECIPE, compute)
    assert compute.calls == 2 and torch.equal(found[0], compute.factors[0])


def test_zero_gigabytes_turn_the_cache_off(folder, weight, monkeypatch):
    monkeypatch.setenv("STABLERANK_FACTORS_GB", "0")
    compute = Compute(weight)
    cached_factors(weight, RECIPE, compute)
    cached_factors(weight, RECIPE, compute)
    assert compute.calls == 2 and not folder.exists()


@pytest.mark.parametrize("setting", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(weight, monkeypatch, setting):
    monkeypatch.setenv("STABLERANK_FACTORS_GB", setting)
    with pytest.raises(RecipeError, match=setting):
        cached_factors(weight, RECIPE, Compute(weight))


def test_what_was_used_longest_ago_makes_room(folder, weight, monkeypatch):
    compute = Compute(weight)

    def entry(rank):
        before = set(folder.iterdir()) if folder.exists() else set()
        cached_factors(weight, {"rank": rank}, compute)
        return (set(folder.iterdir()) - before).pop()

    old, used = entry(1), entry(2)
    size = old.stat().st_size
    os.utime(old, (1, 1))
    os.utime(used, (0, 0))
    cached_factors(weight, {"rank": 2}, compute)  # a hit: used just now
    monkeypatch.setenv("STABLERANK_FACTORS_GB", str(2.5 * size / 1e9))
    new = entry(3)
    assert set(folder.iterdir()) == {used, new}


def test_a_cache_that_cannot_be_written_warns_and_goes_on(weight, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path / "file"))
    compute = Compute(weight)
    with pytest.warns(UserWarning, match="not cached"):
        found = cached_factors(weight, RECIPE, compute)
    assert torch.equal(found[1], compute.factors[1])


def _write_and_read(start):
    weight = torch.arange(4000.0).reshape(80, 50)
    factors = weight[:, :9].clone(), weight[:9].clone()
    while time.time() < start:
        pass
    for round_ in range(20):
        for b_OR, a_RI in (cached_factors(weight, {"round": round_}, lambda: factors),):
            assert torch.equal(b_OR, factors[0]) and torch.equal(a_RI, factors[1])


def test_writers_at_once_never_give_a_torn_entry(folder):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_and_read, args=(time.time() + 0.3,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(folder.iterdir())) == 20 and not list(folder.glob(".*"))
