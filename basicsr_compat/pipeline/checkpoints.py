"""How a BasicSR training is saved, stopped and gone on with: whole files, orderly stops, and exactly the same losses.

Patches nothing: `basicsr_compat` puts these in the place of BasicSR's own. A resumed training in one process computes
what the uninterrupted one would have, bit for bit, because

- what a training item is, is a function of (manual_seed, epoch, position in the epoch's order), whatever process makes
  it (`ResumableSampler`, `SeededItems`), and the sampler starts where the interrupted epoch stopped;
- our models draw from generators seeded anew by (manual_seed, rank, iteration) in every iteration (`derive_seed`);
- what then is left as state, the global random generators among it, is in the `.state` file.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils import dist_util, get_root_logger, misc

from basicsr_compat.files import NotSaved, atomic_save, checksum, read_checkpoint
from basicsr_compat.pipeline.options import warn

# ------------------------------------------------------------------------------------------- files


def _save(obj, path: str) -> None:
    """BasicSR writes checkpoints in place and ignores that a disk is full: truncated files, exit 0."""
    for waiting in (1, 1, 0):  # as BasicSR: network file systems fail now and then
        try:
            return atomic_save(obj, path)
        except NotSaved as error:
            if not waiting:
                raise
            get_root_logger().warning(f"Save error: {error}; trying again")
            time.sleep(waiting)


def _is_intermediate(current_iter: int | str) -> bool:
    """Whether a checkpoint is one of many (an iteration's, the best), and not the outcome of the training (-1)."""
    return current_iter != -1


# ------------------------------------------------------------------------------------------- randomness


def derive_seed(purpose: str, *numbers: int) -> int:
    """A seed in [0, 2^32) for a purpose, from whole numbers >= 0, each of which changes it: NumPy's SeedSequence."""
    return int(np.random.SeedSequence([zlib.crc32(purpose.encode()), *numbers]).generate_state(1)[0])


def _random_state() -> dict[str, Any]:
    """State of the global generators of Python, NumPy and torch, as tensors and plain containers."""
    kind, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """Put the states of the global generators back after a block."""
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


@contextlib.contextmanager
def _global_randomness_of(seed: int) -> Iterator[None]:
    """Run a block with the global CPU generators seeded, and put their states back: ours and BasicSR's datasets draw
    from them."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class ResumableSampler(EnlargedSampler):
    """BasicSR's sampler, which hands out (index, seed) for `SeededItems` and can start within an epoch.

    BasicSR's resume replays the interrupted epoch from its start.
    """

    manual_seed = 0
    resumed_epoch, resumed_at = 0, 0

    def resume(self, epoch: int, position: int) -> None:
        """Leave out the first `position` samples, of all ranks, in the order of `epoch`; nothing is read for it."""
        self.resumed_epoch, self.resumed_at = epoch, position

    @property
    def start(self) -> int:
        """Samples of all ranks that the present epoch leaves out."""
        return self.resumed_at if self.epoch == self.resumed_epoch else 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices = list(super().__iter__())
        for position in range(math.ceil(self.start / self.num_replicas), len(indices)):
            # Of the position in the order of all ranks: the same samples whatever the number of ranks or workers.
            place = position * self.num_replicas + self.rank
            yield indices[position], derive_seed("item", self.manual_seed, self.epoch, place)


class SeededItems(torch.utils.data.Dataset):
    """Items of any training set, each drawn from global generators seeded by the sampler for it alone."""

    def __init__(self, dataset: torch.utils.data.Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index_and_seed: tuple[int, int]):
        index, seed = index_and_seed
        with _global_randomness_of(seed):
            return self.dataset[index]


def _obeys_its_parent_alone(init):
    """Ctrl-C and a launcher's SIGTERM reach the workers too: the training's last iteration still needs them."""

    def init_worker(worker_id: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):  # not on macOS
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            threading.Thread(target=_wait_for_parents_signal, args=(os.getppid(),), daemon=True).start()
        if init is not None:
            init(worker_id)

    return init_worker


def _wait_for_parents_signal(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)  # as the handler of PyTorch that this takes the place of


def seeded_loader(build):
    """BasicSR's training loader draws its items, and its workers' seeds, from generators that nothing restores."""

    @functools.wraps(build)
    def build_dataloader(dataset, dataset_opt, *args, **kwargs):
        if dataset_opt["phase"] != "train":
            return build(dataset, dataset_opt, *args, **kwargs)
        if dataset_opt.get("prefetch_mode") == "cpu" and dataset_opt["num_worker_per_gpu"] == 0:
            # Its thread would draw from the generators of the training, in whatever order the two happen to run.
            dataset_opt = {**dataset_opt, "prefetch_mode": None}
            get_root_logger().info("prefetch_mode: cpu without workers is not reproducible: items load in line.")
        loader = build(SeededItems(dataset), dataset_opt, *args, **kwargs)
        loader.generator = torch.Generator()
        loader.worker_init_fn = _obeys_its_parent_alone(loader.worker_init_fn)
        return loader

    return build_dataloader


# ------------------------------------------------------------------------------------------- the run


class ValidationStopped(Exception):
    """A signal came during a validation, whose rest is left out."""


class Run:
    """The training of this process: BasicSR's loop keeps this in local variables, out of reach of what it calls."""

    def __init__(self):
        self.opt: dict[str, Any] = {}
        self.resumed: dict[str, Any] | None = None  # the state that it went on from, until the first iteration
        self.model = self.sampler = self.loader = self.tb_logger = None
        self.val_loaders: list = []
        self.iteration: int | None = None  # that runs, or ran last
        self.consumed = 0  # samples of all ranks that this epoch has handed to the training
        self.saved: int | None = None  # iteration of the last state written
        self.best: dict[str, Any] | None = None  # metric, value and iteration of net_g_best.pth
        self.signal: int | None = None  # that this process got
        self.stop: tuple[int, int] | None = None  # last iteration, and the signal for it, agreed by all ranks

    def begin(self, opt: dict[str, Any]) -> None:
        """A training begins in this process."""
        self.__init__()
        self.opt = opt

    # ------------------------------------------------------------------------------------- stopping

    def stop_wanted(self) -> bool:
        """Whether any rank got a signal; then `stop` is set, the same on all ranks."""
        if self.stop is None and self.opt["world_size"] == 1 and self.signal is not None:
            self.stop = self.iteration, self.signal
        elif self.stop is None and self.opt["world_size"] > 1:
            # No collective, which a GPU would wait for: one look into the launcher's key-value store.
            store = torch.distributed.distributed_c10d._get_default_store()
            key = "basicsr/stop"
            if self.signal is not None:
                proposal = f"{self._common_stop()} {self.signal}"
                self.stop = tuple(map(int, store.compare_set(key, "", proposal).split()))
            elif store.check([key]):
                self.stop = tuple(map(int, store.get(key).split()))
        return self.stop is not None

    def _common_stop(self) -> int:
        """An iteration that no rank can have ended: the next whose gradients are synchronized.

        On a GPU the processes run ahead of it by what its queue holds, some iterations at most.
        """
        accumulate = self.opt["train"].get("accumulate", 1)
        ahead = 4 if self.model.device.type == "cuda" else 0
        return ((self.iteration + ahead) // accumulate + 1) * accumulate

    def before_batch(self) -> None:
        """BasicSR's loop asks for a batch: an iteration has ended, with its log, checkpoint and validation.

        Raises SystemExit after the last iteration where a signal asked for an end: 128 + its number, or 1 where that
        iteration could not be saved.
        """
        if self.iteration is None:
            return self._validate_again()
        if not self.stop_wanted() or self.iteration < self.stop[0]:
            return
        last, number = self.stop
        name = signal.Signals(number).name
        logger = get_root_logger()
        if self.iteration > last:
            logger.error(f"{name}: this process was past iteration {last} before it knew of the stop; nothing is saved")
            sys.exit(1)
        if self.iteration % self.opt["logger"]["save_checkpoint_freq"]:
            self.model.save(self.sampler.epoch, self.iteration)
        if self.opt["world_size"] > 1:
            torch.distributed.barrier()  # torchrun ends all ranks as soon as one ends
            torch.distributed.destroy_process_group()
        if self.tb_logger:
            self.tb_logger.close()
        if self.opt["rank"] == 0 and self.saved != self.iteration:
            logger.error(f"{name}: stopped after iteration {last}, which could not be saved")
            sys.exit(1)
        logger.info(f"{name}: stopped after iteration {last}, which is saved; --auto_resume goes on from there")
        sys.exit(128 + number)

    def after_batch(self, batch) -> None:
        """A batch has come, or None at the end of an epoch."""
        if batch is not None and self.loader is not None:
            self.consumed += self.loader.batch_size * self.opt["world_size"]

    def before_epoch(self) -> None:
        """An epoch begins; a resumed one within it."""
        self.consumed = self.sampler.start if self.sampler is not None else 0

    def exit_code(self) -> int:
        """That of a training that has come to its end: not 0 where a signal cut the last validation short."""
        return 128 + self.stop[1] if self.stop is not None else 0

    # ------------------------------------------------------------------------------------- parts of the run

    def take_loaders(self, opt: dict, loader, sampler: ResumableSampler, val_loaders: list, total_iters: int) -> int:
        """The loop's loaders; starts them where the resumed run stopped. Returns the number of epochs in all."""
        self.loader, self.sampler, self.val_loaders = loader, sampler, val_loaders
        sampler.manual_seed = opt["manual_seed"]
        if self.resumed is None:
            return math.ceil(total_iters / len(loader))
        epoch, consumed = self.resumed["epoch"], self.resumed.get("consumed", 0)
        sampler.resume(epoch, consumed)
        # Another batch size or number of ranks may have made the epochs longer since, or shorter.
        done = consumed // (loader.batch_size * opt["world_size"])
        return epoch + math.ceil((total_iters - self.resumed["iter"] + done) / len(loader))

    def watch(self, model) -> None:
        """Follow a model through its training."""
        self.model, self.opt = model, model.opt
        update = model.update_learning_rate

        @functools.wraps(update)
        def update_learning_rate(current_iter, *args, **kwargs):
            self.iteration = current_iter  # BasicSR's first call in an iteration
            return update(current_iter, *args, **kwargs)

        model.update_learning_rate = update_learning_rate

    def validate(self, validate, dataloader, current_iter: int, *args, **kwargs) -> None:
        """One validation: it leaves the generators as they were, ends at a signal, and may save the best model."""
        feed = self.model.feed_data

        def feed_data(data):
            if self.iteration is not None and self.stop_wanted():
                raise ValidationStopped
            return feed(data)

        self.model.feed_data = feed_data
        try:
            with _global_randomness_kept():
                validate(dataloader, current_iter, *args, **kwargs)
        except ValidationStopped:
            get_root_logger().info(f"The validation of iteration {current_iter} was cut short by a signal.")
            return
        finally:
            del self.model.feed_data
        if not self.val_loaders or dataloader is self.val_loaders[0]:
            self._save_best(current_iter)

    def _validate_again(self) -> None:
        """The validation due at the iteration of the state came after it was saved, and may never have ended."""
        val = self.opt.get("val")
        state, self.resumed = self.resumed, None
        if state is None or val is None or state["iter"] % val["val_freq"]:
            return
        for loader in self.val_loaders:
            self.model.validation(loader, state["iter"], self.tb_logger, val["save_img"])

    def _save_best(self, current_iter: int) -> None:
        """net_g_best.pth: the weights with the best value of val.key_metric on the first validation set."""
        name = self.opt["val"].get("key_metric")
        value = float(getattr(self.model, "metric_results", {}).get(name, math.nan)) if name else math.nan
        if not math.isfinite(value):
            return
        sign = 1 if self.opt["val"]["metrics"][name].get("better", "higher") == "higher" else -1
        if self.best is not None and self.best["metric"] == name and sign * value < sign * self.best["value"]:
            return
        try:
            self.model.save(-1, "best")
        except OSError as error:
            return get_root_logger().error(f"The best model was not saved: {error}")
        self.best = {"metric": name, "value": value, "iter": current_iter}
        get_root_logger().info(f"The best {name} so far, {value:.4f}: saved as net_g_best.pth")


run = Run()


@contextlib.contextmanager
def orderly_stops() -> Iterator[Run]:
    """Within this block SIGTERM and Ctrl-C end a training after its running iteration; a second one ends it at once.

    Where no iteration has begun they raise SystemExit and KeyboardInterrupt, which lets a failed start clean up.
    """
    run.__init__()

    def handle(number, frame):
        if run.iteration is None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)
        run.signal = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    # What is ignored stays so: nohup's, and Ctrl-C's in a shell's background.
    asked = [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, handle) for each in asked}
    try:
        yield run
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# ------------------------------------------------------------------------------------------- saving


@dist_util.master_only
def save_network(self, net, net_label, current_iter, param_key="params") -> None:
    """BasicSR's writes in place, and goes on where the disk is full; a model's method. current_iter: -1, 'best' too."""
    if current_iter == "best" and net_label != "net_g":
        return
    nets, keys = (value if isinstance(value, list) else [value] for value in (net, param_key))
    if len(nets) != len(keys):
        raise ValueError(f"{len(nets)} networks for {len(keys)} keys {keys}: the numbers must be the same")
    content = {}
    for one, key in zip(nets, keys, strict=True):
        state = self.get_bare_model(one).state_dict()
        content[key] = {name.removeprefix("module."): value.detach().cpu() for name, value in state.items()}
    label = "latest" if current_iter == -1 else current_iter
    name = f"{net_label}_{label}.pth"
    path = os.path.join(self.opt["path"]["models"], name)
    if not isinstance(current_iter, int) or current_iter == -1:
        return _save(content, path)
    iteration, written = getattr(self, "_written", (None, {}))
    if iteration != current_iter:
        written = {}
    self._written = current_iter, written
    try:
        _save(content, path)
        written[name] = checksum(path)
    except OSError as error:
        written[name] = None
        get_root_logger().error(f"{error}. The training goes on; the checkpoints before this one are as they were.")


def save_training_state(self, epoch: int, current_iter: int | str) -> None:
    """BasicSR's forgets the best metrics, the place in the epoch and all random generators; a model's method.

    Written last: a state implies its networks, whose checksums it holds. Where one of them could not be written there
    is none.
    """
    if not isinstance(current_iter, int) or current_iter == -1:
        return
    own = {"random": _random_state(), "manual_seed": self.opt["manual_seed"]}
    if hasattr(self, "training_state"):
        own["model"] = _on_cpu(self.training_state(current_iter))
    ranks = [own]
    if dist_util.get_dist_info()[1] > 1:
        ranks = [None] * self.opt["world_size"] if self.opt["rank"] == 0 else None
        torch.distributed.gather_object(own, ranks)
    if self.opt["rank"] != 0:
        return
    iteration, networks = getattr(self, "_written", (None, {}))
    networks = networks if iteration == current_iter else {}
    if None in networks.values():
        return get_root_logger().error(f"No training state of iteration {current_iter}: its networks are not all saved")
    state = {
        "epoch": epoch,
        "iter": current_iter,
        "consumed": run.consumed,
        "networks": networks,
        "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        "best_metric_results": {
            dataset: {name: {**record, "val": float(record["val"])} for name, record in records.items()}
            for dataset, records in getattr(self, "best_metric_results", {}).items()
        },
        "best": run.best,
        "ranks": ranks,
    }
    try:
        _save(state, os.path.join(self.opt["path"]["training_states"], f"{current_iter}.state"))
    except OSError as error:
        return get_root_logger().error(f"{error}. The training goes on; the states before this one are as they were.")
    run.saved = current_iter
    _prune(self.opt, current_iter)


def _on_cpu(value):
    """Plain containers of tensors, the tensors on the CPU: another rank may not have this one's device."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def _prune(opt: dict[str, Any], current_iter: int) -> None:
    """Keep the states and networks of the newest logger.keep_last iterations up to this one, and those beyond it."""
    keep_last = (opt.get("logger") or {}).get("keep_last")
    if not keep_last:
        return
    states = {int(path.stem): path for path in _states(opt)}
    kept = sorted(iteration for iteration in states if iteration <= current_iter)[-keep_last:]
    # States first: none may be there without its networks.
    old = [path for iteration, path in sorted(states.items()) if iteration < kept[0]]
    for path in sorted(Path(opt["path"]["models"]).glob("net_*.pth")):
        label = path.stem.rpartition("_")[2]
        if label.isdigit() and int(label) < kept[0]:
            old.append(path)
    try:
        for path in old:
            path.unlink(missing_ok=True)
    except OSError as error:
        get_root_logger().error(f"An old checkpoint cannot be removed (logger.keep_last): {error}")


# ------------------------------------------------------------------------------------------- resuming


def _states(opt: dict[str, Any]) -> list[Path]:
    return [path for path in Path(opt["path"]["training_states"]).glob("*.state") if path.stem.isdigit()]


def _read_state(path: str | os.PathLike, opt: dict[str, Any]) -> dict[str, Any]:
    """A state whose networks are all there as they were written. Raises ValueError, or FileNotFoundError."""
    state = read_checkpoint(path)
    models = Path(opt["path"]["models"])
    if "networks" in state:
        for name, crc in state["networks"].items():
            if not (models / name).is_file():
                raise FileNotFoundError(f"{models / name} is missing")
            if checksum(models / name) != crc:
                raise ValueError(f"{models / name} is damaged, or of another run than the state")
        return state
    # Of a version that did not name the networks.
    networks = list(models.glob(f"net_*_{state['iter']}.pth"))
    if not networks:
        raise FileNotFoundError(f"{models} has no networks of iteration {state['iter']}")
    for network in networks:
        read_checkpoint(network)
    return state


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """BasicSR's looks under the working directory, needs a CUDA device, and dies of a state that a kill left in pieces.

    Args:
        opt: the options; with auto_resume the newest state whose networks are whole becomes path.resume_state.

    Raises:
        ValueError, FileNotFoundError: the state named in path.resume_state, or a network of its, is damaged or missing.
    """
    run.begin(opt)
    drawn = opt.pop("manual_seed_drawn", False)
    state, path = None, opt["path"].get("resume_state")
    if opt["rank"] == 0:
        _remove_leftovers(opt)
    if opt["auto_resume"]:
        found = sorted(_states(opt), key=lambda one: int(one.stem), reverse=True)
        for path in map(str, found):
            try:
                state = _read_state(path, opt)
                break
            except (ValueError, OSError) as error:
                warn(f"--auto_resume passes over {path}: {error}")
        if found and state is None:
            warn("--auto_resume finds no whole checkpoint: the training starts anew")
    elif path:
        try:
            state = _read_state(path, opt)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"path.resume_state={path!r}: {error}") from None
        except ValueError as error:
            raise ValueError(f"path.resume_state={path!r}: {error}") from None
    if state is None:
        return None
    opt["path"]["resume_state"] = path
    if "ranks" not in state:
        warn(f"{path} is of an earlier version: the epoch starts anew, and the losses are not exactly those of a run "
             "that was never stopped")  # fmt: skip
    elif drawn:
        opt["manual_seed"] = _of_rank(state, opt)["manual_seed"]
    run.resumed, run.best = state, state.get("best")
    misc.check_resume(opt, state["iter"])
    return state


def _remove_leftovers(opt: dict[str, Any]) -> None:
    """Temporary files of a save that was killed."""
    for folder in ("models", "training_states"):
        for path in Path(opt["path"][folder]).glob("*.tmp"):
            if re.search(r"\.(pth|state|safetensors)\.tmp$", path.name):
                path.unlink(missing_ok=True)


def _of_rank(state: dict[str, Any], opt: dict[str, Any]) -> dict[str, Any]:
    """The part of a state that this rank wrote, or, with another number of ranks, one like it."""
    return state["ranks"][opt["rank"] % len(state["ranks"])]


def resumes_exactly(resume):
    """BasicSR's restores optimisers and schedulers, also where the options have another schedule by now, and forgets
    the rest; see save_training_state. A model's method."""

    @functools.wraps(resume)
    def resume_training(self, resume_state):
        # The schedule is that of the options, which may have been made longer since; its place is that of the state.
        schedulers = [
            {name: value for name, value in one.items() if name in ("last_epoch", "_step_count", "_last_lr")}
            for one in resume_state["schedulers"]
        ]
        resume(self, {**resume_state, "schedulers": schedulers})
        if resume_state.get("best_metric_results"):
            self.best_metric_results = resume_state["best_metric_results"]
        if "ranks" not in resume_state:
            return
        own = _of_rank(resume_state, self.opt)
        if hasattr(self, "load_training_state") and "model" in own:
            self.load_training_state(own["model"])
        if len(resume_state["ranks"]) == self.opt["world_size"]:
            _set_random_state(own["random"])
        else:
            get_root_logger().warning(
                f"The state is of {len(resume_state['ranks'])} processes, this training of {self.opt['world_size']}: "
                "it goes on from the same place, with other random draws"
            )

    return resume_training
