"""How ranks find each other, and whose fault an error is; no process is started."""

import os

import pytest
import torch

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
