"""How ranks find each other, on SLURM and under torchrun; no process is started."""

import contextlib
import math
import os
import random
import socket
import sys
from pathlib import Path

import pytest
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.misc import set_random_seed
from small_models import sr_options

from basicsr_compat.pipeline import distributed

SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_NODELIST": "node[7-8]; touch injected"}
FOUND = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """SLURM's environment with a `scontrol`; a call that joins the process group and returns what was made of it."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && printf "first\\nsecond\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    for name in (*FOUND, "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "")  # so that what the call sets is taken back
        monkeypatch.delenv(name)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    groups = []
    meeting = iter([(torch.distributed.HashStore(), 3, 4)] * 9)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url, timeout: meeting)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **settings: groups.append(settings))

    def join(**settings):
        distributed.init_process_group("slurm", settings, on_gpu=False)
        return {name: os.environ[name] for name in FOUND} | groups[-1]

    return join


def test_slurm_tells_ranks_and_the_first_node_and_no_shell_reads_its_list(slurm, tmp_path):
    found = slurm()
    assert [found[name] for name in FOUND] == ["3", "4", "1", "first", "20000"]
    assert not (tmp_path / "injected").exists()


def test_the_port_is_the_options_or_the_environments_or_made_of_the_jobs_number(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    assert slurm()["MASTER_PORT"] == "23456"
    monkeypatch.setenv("MASTER_PORT", "29999")
    assert slurm()["MASTER_PORT"] == "29999"
    assert slurm(port=29501)["MASTER_PORT"] == "29501"


def test_a_first_node_that_scontrol_cannot_name_may_be_given(slurm, monkeypatch, tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ValueError, match="scontrol show hostnames node.*set the environment variable MASTER_ADDR"):
        slurm()
    monkeypatch.setenv("MASTER_ADDR", "given")
    assert slurm()["MASTER_ADDR"] == "given"


def test_slurm_without_srun_is_refused(slurm, monkeypatch):
    monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(ValueError, match="--launcher slurm needs SLURM_PROCID, which srun sets"):
        slurm()


def test_the_timeout_is_half_an_hour_or_what_the_yml_says(slurm):
    assert slurm()["timeout"].total_seconds() == 1800
    assert slurm(timeout=2.5)["timeout"].total_seconds() == 2.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timout": 3}, "dist_params.timout.*did you mean 'timeout'"),
        ({"timeout": 0}, "dist_params.timeout=0 must be"),
        ({"port": 70000}, "dist_params.port=70000 must be"),
    ],
)
def test_impossible_settings_are_refused(slurm, settings, message):
    with pytest.raises(ValueError, match=message):
        slurm(**settings)


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
    distributed.init_process_group("pytorch", {"backend": "nccl", "port": 29500}, on_gpu=False)
    assert torch.distributed.get_backend() == "gloo"
    assert torch.multiprocessing.get_start_method(allow_none=True) == start_method

    model = SRModel(sr_options(tmp_path, dist=True))
    assert isinstance(model.net_g, torch.nn.parallel.DistributedDataParallel)
    model.feed_data({"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)})
    model.optimize_parameters(1)
    assert math.isfinite(model.get_current_log()["l_pix"])


def gloo_threads():
    count = 0
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # one that has just ended
            count += "gloo" in Path(f"/proc/self/task/{thread}/comm").read_text()
    return count


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have names in /proc")
@pytest.mark.parametrize("fails", [False, True])
def test_no_thread_of_the_group_is_left_at_the_end(one_process_group, tmp_path, fails):
    """One that releases what it gathered while the interpreter ends aborts the process."""
    before = gloo_threads()

    def run():
        distributed.init_process_group("pytorch", {}, on_gpu=False)
        model = SRModel(sr_options(tmp_path, dist=True))
        model.feed_data({"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)})
        model.optimize_parameters(1)
        torch.distributed.all_gather_object([None], {"psnr": torch.rand(3)})
        if gloo_threads() == before:
            pytest.skip("this PyTorch does not name gloo's threads")
        if fails:
            raise ValueError("a fault")

    failure = None
    try:
        run()
    except ValueError as error:
        failure = error
    distributed.leave(None, failure)
    assert gloo_threads() == before


def test_gloo_may_let_go_of_its_tensors_before_the_group_ends(one_process_group, monkeypatch):
    """Otherwise they may wait for each other for ever."""
    distributed.init_process_group("pytorch", {}, on_gpu=False)
    calls, destroy = [], torch.distributed.destroy_process_group
    monkeypatch.setattr(distributed.time, "sleep", lambda seconds: calls.append(seconds))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: (calls.append("destroy"), destroy()))
    distributed.leave(None)
    assert calls == [distributed.GLOO_PAUSE, "destroy"] and distributed.GLOO_PAUSE > 0


def test_the_launcher_says_that_it_needs_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc_per_node"):
        distributed.init_process_group("pytorch", {}, on_gpu=False)


@pytest.mark.parametrize("seed", [7, None])
def test_a_run_is_seeded_by_its_options_or_by_a_seed_that_is_drawn_and_noted(seed):
    opt = {"dist": False, "manual_seed": seed}
    distributed.join(opt, "none")
    assert (opt["rank"], opt["world_size"]) == (0, 1)
    assert opt["manual_seed"] == seed if seed else 1 <= opt["manual_seed"] <= 10000
    assert opt.get("manual_seed_drawn", False) == (seed is None)
    drawn = torch.rand(()), random.random()
    set_random_seed(opt["manual_seed"])
    assert drawn == (torch.rand(()), random.random())
