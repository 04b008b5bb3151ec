"""Repairs of BasicSR 1.4.2 for today's PyTorch, torchvision, NumPy and OpenCV, on CPU as on GPU.

The only place that patches BasicSR. Importing it applies every repair once; our packages import it before anything
else, so that their users, and the DataLoader workers that unpickle their classes, have the repairs too. Each repair is
one function or class whose docstring gives the reason, stays right where BasicSR has mended the fault itself, and may
be applied twice. Nothing here reads the command line, starts CUDA or opens the network at import.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime
import functools
import inspect
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import types
import warnings
from dataclasses import dataclass
from typing import Annotated

import basicsr.test
import basicsr.train
import cv2
import numpy as np
import torch
from basicsr.data import prefetch_dataloader
from basicsr.models import base_model
from basicsr.utils import (
    dist_util,
    file_client,
    get_root_logger,
    img_util,
    logger,
    misc,
    options,
)
from basicsr.utils.registry import METRIC_REGISTRY, Registry

from basicsr_compat.files import read_checkpoint, state_difference
from basicsr_compat.images import UnreadableImage, decode_image, printable
from basicsr_compat.pipeline.checkpoints import (
    ResumableSampler,
    load_resume_state,
    resumes_exactly,
    save_network,
    save_training_state,
    seeded_loader,
)
from basicsr_compat.pipeline.checkpoints import run as training_run
from basicsr_compat.pipeline.options import add_arguments, nearest, read_options
from basicsr_compat.schema import Positive, Rule, read_section

# ------------------------------------------------------------------------------------------- registries and files


def _register(self: Registry, name: str, obj, suffix: str | None = None) -> None:
    """BasicSR refuses a module that is imported a second time; here only the name of another class is refused."""
    name = f"{name}_{suffix}" if isinstance(suffix, str) else name
    known = self._obj_map.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (obj.__module__, obj.__qualname__):
        raise AssertionError(f"{name} of {known.__module__} is in the {self._name!r} registry already")
    self._obj_map[name] = obj


def _quiet_get(self: Registry, name: str, suffix: str = "basicsr"):
    """BasicSR's prints 'Name X is not found, use name: X_basicsr!' even where that is the intended object."""
    for key in (name, f"{name}_{suffix}"):
        if key in self:
            return self._obj_map[key]
    raise KeyError(f"no object named {name!r} in the {self._name!r} registry{nearest(name, self.keys())}")


def _sorted_scandir(scandir):
    """BasicSR lists files in the order of the file system: the same seed trains differently on another disk."""

    @functools.wraps(scandir)
    def sorted_scandir(dir_path, suffix=None, recursive=False, full_path=False):
        return iter(sorted(scandir(dir_path, suffix=suffix, recursive=recursive, full_path=full_path)))

    return sorted_scandir


# ------------------------------------------------------------------------------------------- images


_reading = threading.local()


def _remember_path(get):
    """See imfrombytes: it is not told which file its bytes are from."""

    @functools.wraps(get)
    def get_and_remember(self, filepath, *args, **kwargs):
        _reading.path = filepath
        return get(self, filepath, *args, **kwargs)

    return get_and_remember


def imfrombytes(content: bytes, flag: str = "color", float32: bool = False) -> np.ndarray:
    """BasicSR's of half a file, or of one that is no image, is a gray photo or an AttributeError that names no file."""
    flags = {"color": cv2.IMREAD_COLOR, "grayscale": cv2.IMREAD_GRAYSCALE, "unchanged": cv2.IMREAD_UNCHANGED}[flag]
    try:
        image = decode_image(content, flags)
    except UnreadableImage as error:
        raise UnreadableImage(f"{getattr(_reading, 'path', 'the image')} cannot be read: {error}") from error
    return image.astype(np.float32) / 255.0 if float32 else image


# ------------------------------------------------------------------------------------------- distributed


@dataclass(frozen=True, kw_only=True)
class ProcessGroupOptions:
    """Section dist_params.

    backend: of torch.distributed; on a CPU always gloo.
    port: at which SLURM's processes meet; by default MASTER_PORT, or one made of the job's number.
    timeout: seconds for which a rank waits for the others before it takes them for stuck and ends the run.
    """

    backend: str = "nccl"
    port: Annotated[int, Rule("from 1 to 65535", lambda value: 1 <= value <= 65535)] | None = None
    timeout: Positive = 1800


def init_dist(launcher: str, backend: str = "nccl", **kwargs) -> None:
    """BasicSR's divides by the number of GPUs, 0 on a CPU, and makes every DataLoader worker start by a slow spawn.

    Args:
        launcher: pytorch (torchrun) or slurm (srun).
        backend, kwargs: see ProcessGroupOptions.
    """
    settings = read_section(ProcessGroupOptions, {"backend": backend, **kwargs}, "dist_params")
    if launcher == "slurm":
        _translate_slurm(settings.port)
    elif launcher != "pytorch":
        raise ValueError(f"--launcher {launcher} must be pytorch (torchrun) or slurm (srun)")
    elif "RANK" not in os.environ:
        raise ValueError(
            "--launcher pytorch needs the environment that torchrun makes: "
            "torchrun --nproc_per_node=2 --no-python basicsr train -opt X.yml --launcher pytorch"
        )
    backend = settings.backend
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    else:
        backend = "gloo"
    timeout = datetime.timedelta(seconds=settings.timeout)
    store, rank, world_size = next(torch.distributed.rendezvous("env://", timeout=timeout))
    # After a restart by torchrun the store still has the addresses of the processes that died.
    store = torch.distributed.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _translate_slurm(port: int | None) -> None:
    """Make of SLURM's environment torchrun's. BasicSR's hands the list of nodes to a shell, whatever is in it."""
    environment = os.environ
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in environment]
    if missing:
        raise ValueError(
            f"--launcher slurm needs {missing[0]}, which srun sets: "
            "srun --ntasks=2 basicsr train -opt X.yml --launcher slurm"
        )
    if "MASTER_ADDR" not in environment:
        command = ["scontrol", "show", "hostnames", environment["SLURM_NODELIST"]]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            environment["MASTER_ADDR"] = listed.stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            raise ValueError(
                f"--launcher slurm: `{' '.join(command)}` does not say which node is the first ({error}); set the "
                "environment variable MASTER_ADDR to that node's name"
            ) from error
    if port is not None:
        environment["MASTER_PORT"] = str(port)
    elif "MASTER_PORT" not in environment:
        # Below the ports that systems hand out by themselves, and two jobs on a node rarely meet.
        environment["MASTER_PORT"] = str(20000 + int(environment.get("SLURM_JOB_ID", 0)) % 10000)
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", environment["SLURM_PROCID"])


def failed_elsewhere(error: Exception) -> str | None:
    """One line that says which rank's fault `error` is; None where it is this one's, whose message is the one to read.

    The first rank that fails by a fault of its own tells the others so, before its connections close and they fail too.
    """
    rank, world_size = dist_util.get_dist_info()
    if world_size == 1:
        return None
    # Gloo's errors are plain RuntimeErrors.
    connection = isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)
    first = b""
    with contextlib.suppress(RuntimeError):  # the store is gone where its process is
        store = torch.distributed.distributed_c10d._get_default_store()
        if not connection:
            first = store.compare_set("failed_rank", "", str(rank))
        elif store.check(["failed_rank"]):
            first = store.get("failed_rank")
    if first and int(first) != rank:
        return f"rank {rank} ends because rank {int(first)} failed"
    if connection:
        reason = str(error).strip().partition("\n")[0]
        return f"rank {rank} ends because another rank died, or did not answer within dist_params.timeout ({reason})"
    return None


def _once_for_all_ranks(copy_opt_file):
    """BasicSR's lets every rank write the same file at once, into a folder that rank 0 may not have made yet."""
    return dist_util.master_only(copy_opt_file)


# ------------------------------------------------------------------------------------------- options


def parse_options(root_path: str, is_train: bool = True) -> tuple[dict, argparse.Namespace]:
    """BasicSR's lets a missing, misspelt or impossible option through to wherever it first hurts; see pipeline.options

    It also ignores `dist_params` under torchrun, seeds before it reads `--force_yml manual_seed=`, and draws a seed
    that the yml lacks on every rank anew.

    Args:
        root_path: folder in which `experiments/` or `results/` is made.
        is_train: whether this is a training.

    Returns:
        The options and the parsed command line.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    args = parser.parse_args()
    if args.launcher == "slurm" and "SLURM_PROCID" in os.environ:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]  # only rank 0 warns of what it reads
    opt = read_options(args, root_path, is_train)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    _start.goes_on = restarted and opt["auto_resume"]
    if opt["dist"]:
        settings = dict(opt.get("dist_params") or {})
        if opt["num_gpu"] == 0:
            settings["backend"] = "gloo"
        init_dist(args.launcher, **settings)
    opt["rank"], opt["world_size"] = dist_util.get_dist_info()
    if opt["manual_seed"] is None:
        seed = [random.randint(1, 10000)]
        if opt["dist"]:
            torch.distributed.broadcast_object_list(seed)
        opt["manual_seed"] = seed[0]
        opt["manual_seed_drawn"] = True
    misc.set_random_seed(opt["manual_seed"] + opt["rank"])
    return opt, args


# ------------------------------------------------------------------------------------------- start of a run


# What this process's run has made and renamed so far, and whether it has got through its start.
_start = types.SimpleNamespace(folders=[], begun=False, goes_on=False)
# The data of this process's run: the training set, and why images of validations and tests were left out.
_data = types.SimpleNamespace(train_set=None, skipped=[])


def run_has_begun() -> bool:
    """Whether the run of this process has done its first iteration, or begun to test: what fails later is no typo."""
    return _start.begun


def _begin_run() -> None:
    _start.folders.clear()
    _start.begun = True


def mkdir_and_rename(path: str) -> None:
    """BasicSR renames the previous run's folder at once; this remembers it, for a run that fails at its start.

    Where torchrun starts a run anew that is to go on by itself (--auto_resume), the folder is that run's own.
    """
    if _start.goes_on and os.path.exists(path):
        return
    archived = None
    if os.path.exists(path):
        archived = f"{path}_archived_{misc.get_time_str()}"
        print(f"Path already exists. Rename it to {archived}", flush=True)
        os.rename(path, archived)
    _start.folders.append((path, archived))
    os.makedirs(path, exist_ok=True)


@dist_util.master_only
def make_exp_dirs(opt: dict) -> None:
    """BasicSR's makes a folder of every key under path: that it does not know."""
    mkdir_and_rename(opt["path"]["experiments_root" if opt["is_train"] else "results_root"])
    for key in ("models", "training_states", "log", "visualization"):
        if key in opt["path"]:
            os.makedirs(opt["path"][key], exist_ok=True)


def _put_back_on_failed_start(pipeline):
    """A BasicSR run that fails at once has by then renamed the good run's folder: put it back."""

    @functools.wraps(pipeline)
    def run(root_path):
        _start.folders.clear()
        _start.begun = False
        _data.skipped.clear()
        try:
            return pipeline(root_path)
        except BaseException:
            for path, archived in reversed(_start.folders):
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):  # it holds other runs
                    os.rmdir(os.path.dirname(path))
                if archived is not None:
                    with contextlib.suppress(OSError):  # never hide the error that brought us here
                        os.rename(archived, path)
            raise

    return run


def _begins_run(function):
    """The call after which a run counts as begun."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        _begin_run()
        return result

    return call


# ------------------------------------------------------------------------------------------- data of a run


def _refuse_empty(build):
    """BasicSR trains on an empty folder for 0 iterations and saves, or divides by zero."""

    @functools.wraps(build)
    def build_dataset(dataset_opt):
        dataset = build(dataset_opt)
        if len(dataset) == 0:
            roots = {key: value for key, value in dataset_opt.items() if key.startswith(("dataroot", "meta_info"))}
            raise ValueError(f"datasets.{dataset_opt['name']} holds no images: {roots}; see datasets/README.md")
        return dataset

    return build_dataset


class ReadableItems(torch.utils.data.Dataset):
    """Items of a validation or test set; instead of one that cannot be used, {"unreadable": why}."""

    def __init__(self, dataset: torch.utils.data.Dataset):
        self.dataset = dataset
        self.scale = dataset.opt.get("scale")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        try:
            item = self.dataset[index]
        except (UnreadableImage, OSError) as error:
            return {"unreadable": str(error)}
        path = item.get("lq_path", "")
        if not path.isprintable():
            return {"unreadable": f"{path} has a name that cannot be printed: rename it"}
        if self.scale and "lq" in item and "gt" in item:
            expected, size = ([side * self.scale for side in item["lq"].shape[-2:]], [*item["gt"].shape[-2:]])
            if expected != size:
                return {
                    "unreadable": f"{item['gt_path']} has {size[0]}x{size[1]} pixels, but must have "
                    f"{expected[0]}x{expected[1]}, {self.scale} times those of {item['lq_path']}"
                }
        return item


def skip_image(reason: str) -> None:
    """Leave an image of a validation or test out: name it in the log, and count it."""
    get_root_logger().error(f"left out: {printable(reason)}")
    _data.skipped.append(reason)


def skipped_images() -> list[str]:
    """Why images were left out of the validations and tests of this process's run so far."""
    return _data.skipped


class _ReadableLoader:
    """BasicSR's validation ends at the first image that cannot be read: this loader leaves it out."""

    def __init__(self, loader: torch.utils.data.DataLoader):
        self.dataset, self.num_workers = loader.dataset, loader.num_workers
        self.loader = torch.utils.data.DataLoader(ReadableItems(loader.dataset), batch_size=1)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        readable = False
        for data in self.loader:
            if "unreadable" in data:
                skip_image(data["unreadable"][0])
            else:
                readable = True
                yield data
        if not readable:
            raise UnreadableImage(f"none of the {len(self)} images of {self.dataset.opt['name']} can be read")


def _leave_out_unreadable(build):
    """See _ReadableLoader."""

    @functools.wraps(build)
    def build_dataloader(*args, **kwargs):
        return _ReadableLoader(build(*args, **kwargs))

    return build_dataloader


def _say_what_was_replaced(pipeline):
    """A data set that replaces unreadable photos says so one by one, each rank its own: here is the sum."""

    @functools.wraps(pipeline)
    def run(root_path):
        _data.train_set = None
        pipeline(root_path)
        unreadable = [list(getattr(_data.train_set, "unreadable", ()))]
        if dist_util.get_dist_info()[1] > 1:
            unreadable = [None] * dist_util.get_dist_info()[1]
            torch.distributed.all_gather_object(unreadable, list(getattr(_data.train_set, "unreadable", ())))
        paths = sorted({path for part in unreadable for path in part})
        if paths:
            shown = ", ".join(map(str, paths[:10])) + (", ..." if len(paths) > 10 else "")
            get_root_logger().warning(
                f"{len(paths)} of {len(_data.train_set)} training images could not be read and were replaced: {shown}"
            )

    return run


def _epochs_from_loader(create):
    """BasicSR rounds an epoch's iterations up where the loader rounds down: 40 asked, 21 done; or none, and exit 0."""

    @functools.wraps(create)
    def create_train_val_dataloader(opt, logger):
        train_loader, sampler, val_loaders, epochs, total_iters = create(opt, logger)
        _data.train_set = train_loader.dataset.dataset
        val_loaders = [_ReadableLoader(loader) for loader in val_loaders]
        if len(train_loader) == 0:
            raise ValueError(
                f"datasets.train: its {len(train_loader.dataset)} images do not fill one batch of "
                f"{train_loader.batch_size} on each of {opt['world_size']} processes; lower batch_size_per_gpu, or "
                "raise dataset_enlarge_ratio"
            )
        needed = training_run.take_loaders(opt, train_loader, sampler, val_loaders, total_iters)
        if needed != epochs:
            logger.info(f"Without the last, unfilled batch: {len(train_loader)} iters per epoch, {needed} epochs.")
        return train_loader, sampler, val_loaders, needed, total_iters

    return create_train_val_dataloader


def _between_iterations(next_batch):
    """BasicSR's loop asks for a batch between two iterations, and tells nobody else that one has ended."""

    @functools.wraps(next_batch)
    def next(self):
        if training_run.iteration is not None:
            _begin_run()
        training_run.before_batch()
        batch = next_batch(self)
        training_run.after_batch(batch)
        return batch

    return next


def _within_epoch(reset):
    """See _between_iterations: what begins an epoch, a resumed one somewhere within it."""

    @functools.wraps(reset)
    def call(self):
        training_run.before_epoch()
        reset(self)

    return call


def _tell_run(init_tb_loggers):
    """A training that is stopped closes TensorBoard's files."""

    @functools.wraps(init_tb_loggers)
    def call(opt):
        training_run.tb_logger = init_tb_loggers(opt)
        return training_run.tb_logger

    return call


class _Failed:
    """An exception on its way from the prefetching thread to the training loop."""

    def __init__(self, error: BaseException):
        self.error = error


class _PrefetchGenerator(threading.Thread):
    """BasicSR's ends at an exception in the dataset, and the training waits for it for ever.

    It also outlives its loop, an epoch's thread and workers each, and now and then aborts the process at its exit.
    """

    def __init__(self, generator, num_prefetch_queue: int):
        super().__init__(daemon=True)
        self.generator = generator
        self.queue = queue.Queue(num_prefetch_queue)
        self._stopping = threading.Event()
        atexit.register(self.stop)
        self.start()

    def run(self) -> None:
        last = None
        try:
            for item in self.generator:
                if not self._hand_over(item):
                    break
        except BaseException as error:
            last = _Failed(error)
        self.generator = None  # ends the loader's workers
        self._hand_over(last)

    def _hand_over(self, item) -> bool:
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self.queue.put(item, timeout=0.1)
                return True
        return False

    def stop(self) -> None:
        self._stopping.set()
        self.join(timeout=60)  # no longer than a sick file system deserves
        atexit.unregister(self.stop)

    def __iter__(self):
        return self

    def __next__(self):
        item = self.queue.get()
        if isinstance(item, _Failed):
            raise item.error
        if item is None:
            raise StopIteration
        return item


def _prefetch_one_epoch_at_a_time(self):
    """See _PrefetchGenerator."""
    if "_prefetching" in self.__dict__:
        self._prefetching.stop()
    self._prefetching = _PrefetchGenerator(torch.utils.data.DataLoader.__iter__(self), self.num_prefetch_queue)
    return self._prefetching


# ------------------------------------------------------------------------------------------- checkpoints


def _load_network(self, net, load_path, strict=True, param_key="params") -> None:
    """BasicSR's unpickles code on older PyTorch, and takes `params` where the asked param_key is not there."""
    net = self.get_bare_model(net)
    state = read_checkpoint(load_path)
    if param_key is not None:
        if param_key not in state:
            asked = {value for key, value in self.opt["path"].items() if key.startswith("param_key")}
            # Models ask for params_ema of their own accord, for the EMA copy of a network that has none saved.
            if param_key in asked or "params" not in state:
                raise ValueError(
                    f"checkpoint {load_path!r} has no {param_key!r}, it has {', '.join(map(repr, list(state)[:5]))}; "
                    "set path.param_key_... to one of them, or to ~ for a file that holds the weights themselves"
                )
            get_root_logger().info(f"{load_path} has no {param_key}: using params.")
            param_key = "params"
        state = state[param_key]
    get_root_logger().info(f"Loading {net.__class__.__name__} model from {load_path}, with param key: [{param_key}].")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    differences = state_difference(net.state_dict(), state)
    if strict and differences:
        raise ValueError(
            f"checkpoint {load_path!r} is of another architecture than {net.__class__.__name__}: "
            + "; ".join(differences)
        )
    self._print_different_keys_loading(net, state, strict)
    net.load_state_dict(state, strict=strict)


# ------------------------------------------------------------------------------------------- validation


def _number_validations(build):
    """BasicSR logs the last validation at total_iter + 1 or + 2, twice, and measures against a stale training batch.

    A validation is also where a signal may stop it, and where the best model is found; see `pipeline.checkpoints`.
    """

    @functools.wraps(build)
    def build_model(opt):
        model = build(opt)
        training_run.watch(model)
        validate, validated = model.validation, {}

        # On the object, not on BaseModel: models may have a validation of their own.
        @functools.wraps(validate)
        def validation(dataloader, current_iter, *args, **kwargs):
            current_iter = min(current_iter, opt["train"]["total_iter"])
            if validated.get(id(dataloader)) != current_iter:
                validated[id(dataloader)] = current_iter
                model.__dict__.pop("gt", None)
                training_run.validate(validate, dataloader, current_iter, *args, **kwargs)

        model.validation = validation
        return model

    return build_model


def _name_missing_ground_truth(calculate):
    """A metric against the ground truth of images that have none is a TypeError about `img2`."""

    @functools.wraps(calculate)
    def calculate_metric(data, opt):
        parameter = inspect.signature(METRIC_REGISTRY.get(opt["type"])).parameters.get("img2")
        if "img2" not in data and parameter is not None and parameter.default is inspect.Parameter.empty:
            raise ValueError(
                f"metric {opt['type']} compares with the ground truth, which this dataset does not have; set its "
                "dataroot_gt, or take the metric out of val.metrics"
            )
        return calculate(data, opt)

    return calculate_metric


def _nan_where_undefined(niqe):
    """NIQE needs two textured blocks; on smaller or flat images BasicSR's ends in an error of linear algebra."""

    @functools.wraps(niqe)
    def niqe_or_nan(img, *args, block_size_h=96, block_size_w=96, **kwargs):
        if img.ndim == 2 and (img.shape[0] // block_size_h) * (img.shape[1] // block_size_w) >= 2:
            with contextlib.suppress(np.linalg.LinAlgError), np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # means and covariances of nothing
                return niqe(img, *args, block_size_h=block_size_h, block_size_w=block_size_w, **kwargs)
        get_root_logger().warning(f"NIQE is undefined (NaN) for a flat image and for one of shape {img.shape}")
        return float("nan")

    return niqe_or_nan


# ------------------------------------------------------------------------------------------- application


def _put(owner, name: str, new, only_here: bool = False) -> None:
    """Replace `owner.name`; of a function, wherever a BasicSR module holds it: they import each other's by name."""
    old = getattr(owner, name)
    if getattr(old, "_repaired", False):
        return
    new._repaired = True
    setattr(owner, name, new)
    if inspect.isfunction(old) and inspect.ismodule(owner) and not only_here:
        for module_name, module in list(sys.modules.items()):
            if module is not None and module_name.partition(".")[0] == "basicsr":
                for attribute in [key for key, value in vars(module).items() if value is old]:
                    setattr(module, attribute, new)


def _wrap(owner, name: str, wrapper, only_here: bool = False) -> None:
    old = getattr(owner, name)
    if not getattr(old, "_repaired", False):
        _put(owner, name, wrapper(old), only_here)


def install() -> None:
    """Apply every replacement, once."""
    _put(Registry, "get", _quiet_get)
    _put(Registry, "_do_register", _register)
    _wrap(misc, "scandir", _sorted_scandir)
    _wrap(file_client.FileClient, "get", _remember_path)
    _put(img_util, "imfrombytes", imfrombytes)
    _put(dist_util, "init_dist", init_dist)
    _put(options, "parse_options", parse_options)
    _put(misc, "mkdir_and_rename", mkdir_and_rename)
    _put(misc, "make_exp_dirs", make_exp_dirs)
    _wrap(options, "copy_opt_file", _once_for_all_ranks)
    _put(basicsr.train, "load_resume_state", load_resume_state)
    _wrap(basicsr.train, "train_pipeline", lambda run: _put_back_on_failed_start(_say_what_was_replaced(run)))
    _wrap(basicsr.test, "test_pipeline", _put_back_on_failed_start)
    # train_pipeline calls this after its first iteration; test_pipeline tests as soon as it has the model
    _wrap(logger.MessageLogger, "reset_start_time", _begins_run)
    _wrap(basicsr.test, "build_model", _begins_run, only_here=True)
    _wrap(basicsr.train, "build_model", _number_validations, only_here=True)
    _wrap(basicsr.data, "build_dataset", _refuse_empty)
    _wrap(basicsr.test, "build_dataloader", _leave_out_unreadable, only_here=True)
    _wrap(basicsr.train, "create_train_val_dataloader", _epochs_from_loader)
    _put(basicsr.train, "EnlargedSampler", ResumableSampler)
    _wrap(basicsr.train, "build_dataloader", seeded_loader, only_here=True)
    _wrap(basicsr.train, "init_tb_loggers", _tell_run)
    for prefetcher in (prefetch_dataloader.CPUPrefetcher, prefetch_dataloader.CUDAPrefetcher):
        _wrap(prefetcher, "next", _between_iterations)
        _wrap(prefetcher, "reset", _within_epoch)
    _put(prefetch_dataloader.PrefetchDataLoader, "__iter__", _prefetch_one_epoch_at_a_time)

    model = base_model.BaseModel
    _put(model, "save_network", save_network)
    _put(model, "save_training_state", save_training_state)
    _put(model, "load_network", _load_network)
    _wrap(model, "resume_training", resumes_exactly)
    _wrap(basicsr.metrics, "calculate_metric", _name_missing_ground_truth)
    _wrap(basicsr.metrics.niqe, "niqe", _nan_where_undefined)
