"""Each replacement in BasicSR's pipelines: a test that fails without it."""

import math
import os
import pickle
import queue
import socket
import threading
from types import SimpleNamespace

import basicsr.data.data_util
import basicsr.metrics
import basicsr.models
import basicsr.test
import basicsr.train
import numpy as np
import pytest
import torch
from basicsr.data.prefetch_dataloader import PrefetchDataLoader
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import dist_util, misc, options
from basicsr.utils.logger import MessageLogger
from basicsr.utils.registry import Registry
from small_models import sr_options

import basicsr_compat
from basicsr_compat import replaced
from basicsr_compat.files import read_checkpoint


@pytest.fixture
def model(tmp_path):
    return SRModel(sr_options(tmp_path))


def weights(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def test_installing_twice_changes_nothing():
    def repaired():
        return (
            misc.scandir,
            basicsr.train.train_pipeline,
            basicsr.test.build_model,
            BaseModel.save_network,
            basicsr.train.build_model,
            MessageLogger.reset_start_time,
        )

    before = repaired()
    basicsr_compat.install_pipeline()
    assert all(one is other for one, other in zip(before, repaired(), strict=True))


def test_a_second_import_replaces_its_own_classes_and_nobody_elses():
    import importlib

    from basicsr.utils.registry import ARCH_REGISTRY

    import iter_arch.lq_encoder_arch as module

    before = ARCH_REGISTRY.get("LQEncoder")
    try:
        assert importlib.reload(module).LQEncoder is not before
        assert ARCH_REGISTRY.get("LQEncoder") is module.LQEncoder
        with pytest.raises(AssertionError, match="LQEncoder of iter_arch.lq_encoder_arch is in"):
            ARCH_REGISTRY.register(type("LQEncoder", (), {}))
    finally:
        module.LQEncoder = before
        ARCH_REGISTRY._obj_map["LQEncoder"] = before


def test_a_suffixed_registration_is_found_in_silence(capsys):
    registry = Registry("thing")
    registry.register(SimpleNamespace, suffix="basicsr")
    assert registry.get("SimpleNamespace") is SimpleNamespace
    assert capsys.readouterr().out == ""
    with pytest.raises(KeyError, match="SimpleNamespac.*did you mean 'SimpleNamespace_basicsr'"):
        registry.get("SimpleNamespac")


def test_files_are_listed_in_order_by_every_module(tmp_path, monkeypatch):
    for name in "bca":
        (tmp_path / name).touch()
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: sorted(scan(path), key=lambda entry: entry.name, reverse=True))
    assert list(misc.scandir(str(tmp_path))) == ["a", "b", "c"]
    assert list(basicsr.data.data_util.scandir(str(tmp_path))) == ["a", "b", "c"]


# ------------------------------------------------------------------------------------------- distributed


@pytest.fixture
def one_process_group(monkeypatch):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    for key, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_process_group_and_its_models_run_on_a_cpu(one_process_group, tmp_path):
    start_method = torch.multiprocessing.get_start_method(allow_none=True)
    options.init_dist("pytorch", backend="nccl", port=29500)
    assert torch.distributed.get_backend() == "gloo"
    assert torch.multiprocessing.get_start_method(allow_none=True) == start_method

    model = SRModel(sr_options(tmp_path, dist=True))
    assert isinstance(model.net_g, torch.nn.parallel.DistributedDataParallel)
    model.feed_data({"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)})
    model.optimize_parameters(1)
    assert math.isfinite(model.get_current_log()["l_pix"])


def test_the_launcher_says_that_it_needs_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc_per_node"):
        dist_util.init_dist("pytorch")


# ------------------------------------------------------------------------------------------- start of a run


def test_only_the_runs_own_folders_are_made(tmp_path):
    path = {
        "experiments_root": tmp_path / "run",
        "models": tmp_path / "run/models",
        "pretrained_net": tmp_path / "x.pth",
    }
    basicsr.train.make_exp_dirs({"is_train": True, "rank": 0, "path": {key: str(value) for key, value in path.items()}})
    assert (tmp_path / "run/models").is_dir()
    assert not (tmp_path / "x.pth").exists()


def pipeline_that(*actions):
    def pipeline(root_path):
        for action in actions:
            action()

    return replaced._put_back_on_failed_start(pipeline)


def fail():
    raise ValueError("a typo")


@pytest.fixture
def good_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "weights").write_text("good")
    return folder


def test_a_run_that_fails_at_its_start_leaves_the_good_run_as_it_was(good_run, tmp_path):
    with pytest.raises(ValueError, match="a typo"):
        pipeline_that(lambda: misc.mkdir_and_rename(str(good_run)), fail)(tmp_path)
    assert (good_run / "weights").read_text() == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not replaced.run_has_begun()


def test_a_run_that_fails_after_its_first_iteration_keeps_its_own_folder(good_run, tmp_path):
    message_logger = MessageLogger(
        {"name": "n", "logger": {"print_freq": 1, "use_tb_logger": False}, "train": {"total_iter": 1}}
    )
    with pytest.raises(ValueError, match="a typo"):
        pipeline_that(lambda: misc.mkdir_and_rename(str(good_run)), message_logger.reset_start_time, fail)(tmp_path)
    assert list(good_run.iterdir()) == []
    assert [path.name.startswith("run_archived_") for path in tmp_path.iterdir() if path.name != "run"] == [True]
    assert replaced.run_has_begun()


def test_a_test_has_begun_when_it_has_its_model_and_a_training_has_not(tmp_path, monkeypatch):
    monkeypatch.setattr(replaced._start, "begun", False)
    basicsr.train.build_model(sr_options(tmp_path))
    assert not replaced.run_has_begun()
    basicsr.test.build_model(sr_options(tmp_path, is_train=False))
    assert replaced.run_has_begun()


def test_the_pipelines_of_basicsr_are_guarded_so():
    for pipeline in (basicsr.train.train_pipeline, basicsr.train_pipeline, basicsr.test.test_pipeline):
        assert pipeline.__wrapped__.__module__ in ("basicsr.train", "basicsr.test")


# ------------------------------------------------------------------------------------------- data of a run


class Numbers(torch.utils.data.Dataset):
    opt = {"name": "numbers"}

    def __init__(self, length, broken=False):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.broken:
            raise OSError("cannot read image 7.png")
        return {"lq": torch.tensor(float(index))}


def loaders(monkeypatch, length, total_iter=40, **dataset):
    monkeypatch.setattr(basicsr.train, "build_dataset", lambda opt: Numbers(length))
    dataset = {"phase": "train", "name": "t", "batch_size_per_gpu": 4, "num_worker_per_gpu": 0, **dataset}
    opt = {"datasets": {"train": dataset}, "train": {"total_iter": total_iter}, "manual_seed": 0}
    opt.update(world_size=1, rank=0, num_gpu=0, dist=False)
    return basicsr.train.create_train_val_dataloader(opt, SimpleNamespace(info=print))


def test_the_epochs_are_enough_for_all_iterations(monkeypatch):
    loader, _, _, epochs, total = loaders(monkeypatch, length=7)
    assert len(loader) * epochs >= total == 40


def test_fewer_images_than_a_batch_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="3 images do not fill one batch of 4"):
        loaders(monkeypatch, length=3)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="empty-set.*no images"):
        basicsr.train.build_dataset(
            {
                "type": "SingleImageDataset",
                "name": "empty-set",
                "dataroot_lq": str(tmp_path),
                "io_backend": {"type": "disk"},
            }
        )


@pytest.mark.parametrize("broken", [False, True])
def test_an_exception_reaches_the_loop_through_the_cpu_prefetcher(broken, monkeypatch):
    get = queue.Queue.get
    monkeypatch.setattr(queue.Queue, "get", lambda self: get(self, timeout=20))  # a hang must fail, not hang
    loader = PrefetchDataLoader(num_prefetch_queue=1, dataset=Numbers(3, broken))
    if broken:
        with pytest.raises(OSError, match=r"cannot read image 7\.png"):
            list(loader)
    else:
        assert len(list(loader)) == 3


def test_the_cpu_prefetcher_ends_the_thread_of_an_abandoned_epoch():
    before = set(threading.enumerate())
    loader = PrefetchDataLoader(num_prefetch_queue=1, dataset=Numbers(100))
    for _ in range(3):
        assert next(iter(loader))["lq"] == 0
    (thread,) = set(threading.enumerate()) - before
    loader._prefetching.stop()  # as at the exit of the process
    assert not thread.is_alive()


# ------------------------------------------------------------------------------------------- checkpoints


class Code:
    def __reduce__(self):
        return os.mkdir, ("made-by-code",)


@pytest.mark.parametrize("kind", ["truncated", "code", "text", "empty", "missing"])
def test_an_unreadable_checkpoint_is_named_and_never_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    if kind == "truncated":
        torch.save({"params": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "code":
        path.write_bytes(pickle.dumps(Code()))
    elif kind != "missing":
        path.write_text("not a checkpoint" if kind == "text" else "")
    with pytest.raises(FileNotFoundError if kind == "missing" else ValueError, match=r"bad\.pth"):
        read_checkpoint(path)
    assert not (tmp_path / "made-by-code").exists()


@pytest.mark.parametrize("kind", ["asked key is missing", "other architecture", "code"])
def test_a_checkpoint_that_does_not_fit_is_refused(model, tmp_path, kind):
    path = str(tmp_path / "other.pth")
    state = weights(model.net_g)
    if kind == "asked key is missing":
        model.opt["path"]["param_key_g"] = "params_ema"
        torch.save({"params": state}, path)
        message = "no 'params_ema', it has 'params'"
    elif kind == "other architecture":
        state["conv_first.weight"] = torch.zeros(8, 3, 3, 3)
        torch.save({"params_ema": state}, path)
        message = r"conv_first\.weight has shape \(8, 3, 3, 3\), the network's has \(4, 3, 3, 3\)"
    else:
        torch.save({"params_ema": Code()}, path)
        message = "holds more than tensors"
    with pytest.raises(ValueError, match=message):
        model.load_network(model.net_g, path, param_key="params_ema")


def test_the_ema_copy_starts_from_params_where_no_ema_was_saved(model, tmp_path):
    torch.save({"params": {key: value + 1 for key, value in weights(model.net_g).items()}}, tmp_path / "plain.pth")
    expected = {key: value + 1 for key, value in weights(model.net_g).items()}
    model.load_network(model.net_g, str(tmp_path / "plain.pth"), param_key="params_ema")
    assert all(torch.equal(value, model.net_g.state_dict()[key]) for key, value in expected.items())


# ------------------------------------------------------------------------------------------- validation


class Images(torch.utils.data.Dataset):
    opt = {"name": "set"}

    def __init__(self, with_gt):
        self.with_gt = with_gt

    def __len__(self):
        return 2

    def __getitem__(self, index):
        item = {"lq": torch.rand(3, 8, 8), "lq_path": f"{index}.png"}
        return {**item, "gt": torch.rand(3, 16, 16)} if self.with_gt else item


def test_validation_carries_the_number_of_the_last_iteration_and_runs_once(tmp_path):
    model = basicsr.train.build_model(sr_options(tmp_path))
    logged = []
    tb_logger = SimpleNamespace(add_scalar=lambda name, value, iteration: logged.append(iteration))
    loader = torch.utils.data.DataLoader(Images(with_gt=True))
    for iteration in (2, 4, 5):  # 5: how BasicSR's loop numbers the validation after its last of 4 iterations
        model.validation(loader, iteration, tb_logger)
    assert logged == [2, 4]


def test_validation_does_not_measure_against_a_training_batch(tmp_path):
    model = basicsr.train.build_model(sr_options(tmp_path))
    model.feed_data({"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)})
    with pytest.raises(ValueError, match="calculate_psnr compares with the ground truth"):
        model.validation(torch.utils.data.DataLoader(Images(with_gt=False)), 2, None)


def test_a_metric_that_needs_no_ground_truth_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (96, 192, 3), dtype=np.uint8)
    assert basicsr.metrics.calculate_metric({"img": image}, {"type": "calculate_niqe", "crop_border": 0}) > 0


@pytest.mark.parametrize("size", [(1, 1, 3), (64, 300, 3), (128, 128, 3), (192, 192, 3)])
def test_niqe_of_what_has_none_is_nan(size):
    assert math.isnan(basicsr.metrics.calculate_niqe(np.full(size, 100, dtype=np.uint8), crop_border=0))
