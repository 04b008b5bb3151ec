"""Processes that train together, started by torchrun or SLURM: joining them, and finding out which one failed."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.misc import set_random_seed

from basicsr_compat.rendezvous import meet
from basicsr_compat.schema import OptionProblems, Positive, Rule, format_error, read_section

# Seconds in which gloo's threads let go of the last tensors that they gathered. In PyTorch 2.6, a thread that has yet
# to do so waits for the interpreter, which waits for it in destroy_process_group: one run in a hundred hung at its end.
GLOO_PAUSE = 0.2


@dataclass(frozen=True, kw_only=True)
class ProcessGroupOptions:
    """The section dist_params.

    backend: of torch.distributed; on a CPU always gloo.
    port: where SLURM's processes meet; by default MASTER_PORT, or one derived from the job's number.
    timeout: seconds that a rank waits for the others before it ends the run.
    """

    backend: str = "nccl"
    port: Annotated[int, Rule("from 1 to 65535", lambda value: 1 <= value <= 65535)] | None = None
    timeout: Positive = 1800


def join(opt: dict[str, Any], launcher: str) -> Watch | None:
    """Join the other processes of a run, and seed this one; returns the watch over the others, for `leave`.

    Adds rank, world_size, and, where the yml has none, a manual_seed to the options, the same on all ranks;
    manual_seed_drawn then says so.

    BasicSR ignores `dist_params` under torchrun, seeds before it reads `--force_yml manual_seed=`, and draws a seed
    that the yml lacks on every rank anew.
    """
    if opt["dist"]:
        init_process_group(launcher, opt.get("dist_params") or {}, on_gpu=opt["num_gpu"] != 0)
    opt["rank"], opt["world_size"] = get_dist_info()
    if opt["manual_seed"] is None:
        seed = [random.randint(1, 10000)]
        if opt["dist"]:
            torch.distributed.broadcast_object_list(seed)
        opt["manual_seed"], opt["manual_seed_drawn"] = seed[0], True
    set_random_seed(opt["manual_seed"] + opt["rank"])
    return Watch(opt["rank"]) if opt["world_size"] > 1 else None


def leave(watch: Watch | None, error: BaseException | None = None) -> None:
    """Leave the process group and end its threads: a thread of gloo that frees a tensor while the interpreter shuts
    down aborts the process.

    The group lives as long as any model that is wrapped for it, so the caller must hold none.

    Args:
        watch: from `join`.
        error: what the run failed with, if it failed. Ranks may be gone then: NCCL is not waited for, gloo for ten
            seconds.
    """
    if watch is not None:
        watch.stop()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    _forget_frames(error)
    gc.collect()
    if torch.distributed.get_backend() == "gloo":
        time.sleep(GLOO_PAUSE)
    if error is None:
        torch.distributed.destroy_process_group()
    elif torch.distributed.get_backend() == "gloo":
        leaving = threading.Thread(target=torch.distributed.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(timeout=10)


def _forget_frames(error: BaseException | None) -> None:
    """Clear the local variables that an error's traceback holds; it can still be printed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def init_process_group(launcher: str, section: dict[str, Any], on_gpu: bool) -> None:
    """Make the default process group.

    Args:
        launcher: pytorch (torchrun) or slurm (srun).
        section: see ProcessGroupOptions.
        on_gpu: whether the processes have GPUs.
    """
    # Before there is a group: its functions keep the group of this moment as a default, which DistributedDataParallel,
    # the next to import it, would make a group that no one can end.
    import torch.distributed.nn.functional  # noqa: F401

    settings = read_section(ProcessGroupOptions, section, "dist_params")
    if launcher == "slurm":
        _translate_slurm(settings.port)
    elif "RANK" not in os.environ:
        raise OptionProblems(
            "--launcher pytorch needs the environment that torchrun makes: "
            "torchrun --nproc_per_node=2 --no-python basicsr train -opt X.yml --launcher pytorch"
        )
    backend = settings.backend if on_gpu else "gloo"
    if on_gpu:
        local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    timeout = datetime.timedelta(seconds=settings.timeout)
    store, rank, world_size = meet(timeout)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _translate_slurm(port: int | None) -> None:
    """Translate SLURM's environment into torchrun's. BasicSR's passes the list of nodes to a shell unquoted."""
    environment = os.environ
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in environment]
    if missing:
        raise OptionProblems(
            f"--launcher slurm needs {missing[0]}, which srun sets: "
            "srun --ntasks=2 basicsr train -opt X.yml --launcher slurm"
        )
    if "MASTER_ADDR" not in environment:
        command = ["scontrol", "show", "hostnames", environment["SLURM_NODELIST"]]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            environment["MASTER_ADDR"] = listed.stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            raise OptionProblems(
                f"--launcher slurm: `{' '.join(command)}` does not say which node is the first "
                f"({format_error(error)}); set the environment variable MASTER_ADDR to that node's name"
            ) from error
    if port is not None:
        environment["MASTER_PORT"] = str(port)
    elif "MASTER_PORT" not in environment:
        # Below the ports that systems hand out by themselves, and two jobs on a node rarely meet.
        environment["MASTER_PORT"] = str(20000 + int(environment.get("SLURM_JOB_ID", 0)) % 10000)
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", environment["SLURM_PROCID"])


def key_value_store() -> torch.distributed.Store:
    """The key-value store through which the processes of a run met."""
    return torch.distributed.distributed_c10d._get_default_store()


_FAILED = "failed_rank"  # of the store: the first rank that failed by a fault of its own


class Watch(threading.Thread):
    """Ends this process some seconds after another rank has failed.

    torchrun ends the other ranks of a run that fails; under srun nobody does, and who waits for a rank that is gone, in
    NCCL above all, waits until dist_params.timeout.

    Args:
        rank: of this process.
        interval: seconds between two looks at the store.
        grace: seconds for this rank to fail with an error of its own, which names the place, or to finish.
    """

    def __init__(self, rank: int, interval: float = 5, grace: float = 20) -> None:
        super().__init__(daemon=True)
        self.rank, self.interval, self.grace = rank, interval, grace
        store = key_value_store()
        # A connection of its own, where PyTorch can make one: another thread may be waiting on the first.
        self.store = store.clone() if hasattr(store, "clone") else store
        self._stopping = threading.Event()
        # A thread that is alive when Python shuts down dies in the middle of PyTorch's code, and aborts the process.
        atexit.register(self.stop)
        self.start()

    def run(self) -> None:
        """Watch for the failure of another rank until `stop`; end this process `grace` seconds after one."""
        while not self._stopping.wait(self.interval):
            failure = self._failure()
            if failure and not self._stopping.wait(self.grace):
                print(f"rank {self.rank} ends because {failure}", file=sys.stderr, flush=True)
                os._exit(1)

    def _failure(self) -> str | None:
        try:
            if not self.store.check([_FAILED]):
                return None
            first = int(self.store.get(_FAILED))
        except RuntimeError:
            return "the process that holds the ranks' store is gone"
        return f"rank {first} failed" if first != self.rank else None

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self.join(timeout=60)
        atexit.unregister(self.stop)


def failed_elsewhere(error: Exception) -> str | None:
    """A line that names the rank whose failure caused `error`; None if this rank itself failed.

    The first rank that fails by a fault of its own tells the others so, before its connections close and they fail too.
    """
    rank, world_size = get_dist_info()
    if world_size == 1:
        return None
    # Gloo's errors are plain RuntimeErrors.
    connection = isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)
    first = b""
    with contextlib.suppress(RuntimeError):  # the store is gone where its process is
        store = key_value_store()
        if not connection:
            first = store.compare_set(_FAILED, "", str(rank))
        elif store.check([_FAILED]):
            first = store.get(_FAILED)
    if first and int(first) != rank:
        return f"rank {rank} ends because rank {int(first)} failed"
    if connection:
        reason = format_error(error)
        return f"rank {rank} ends because another rank died, or did not answer within dist_params.timeout ({reason})"
    return None
