"""Photos shared out between processes, here threads with a store of their own."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from iter_model.photo import devices
from iter_model.photo.processes import TOLD, Processes, Refused


@pytest.fixture
def three():
    store = torch.distributed.HashStore()
    return [Processes(store, rank, 3, rank) for rank in range(3)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
def test_each_item_is_of_one_process(three, count):
    with ThreadPoolExecutor(3) as pool:
        shares = list(pool.map(lambda one: list(one.share(range(count))), three))
    assert sorted(item for share in shares for item in share) == list(range(count))


def test_each_begins_with_an_item_of_its_own(three):
    assert [next(one.share("abc")) for one in reversed(three)] == ["c", "b", "a"]


def test_who_is_alone_has_all_items():
    alone = Processes()
    assert list(alone.share("abc")) == ["a", "b", "c"]
    assert [alone.count_done(), alone.count_done(), alone.total(5)] == [1, 2, 5]


def test_counts_are_of_all(three):
    assert [one.count_done() for one in three] == [1, 2, 3]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda one: one.total(one.rank), three)) == [3, 3, 3]


def test_the_others_hear_the_plan_or_that_there_is_none(three):
    three[0].tell((["a.png"], 1))
    assert [one.hear() for one in three[1:]] == [(["a.png"], 1)] * 2
    three[0].refuse()
    with pytest.raises(Refused):
        three[1].hear()


def test_without_torchrun_a_process_is_alone(monkeypatch):
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (Processes.of_torchrun().rank, Processes.of_torchrun().count) == (0, 1)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [devices.choose_devices("auto", local_rank)[0] for local_rank in range(3)]
    assert found == [torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cuda:0")]
    assert devices.choose_devices("cuda:0", 1) == [torch.device("cuda:0")]
    assert devices.choose_devices("cuda", 1) == [torch.device("cuda:1")]
