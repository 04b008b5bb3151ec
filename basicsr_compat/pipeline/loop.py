"""The loops of `basicsr train` and `basicsr test`, with BasicSR's builders, sampler, prefetchers, and MessageLogger.

Any model of BasicSR runs in them. A training run can be killed at any point: `--auto_resume` continues with the losses
that it would have had; see checkpoints.py and randomness.py.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import logging
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.train import init_tb_loggers
from basicsr.utils import AvgTimer, MessageLogger, get_env_info, get_root_logger, get_time_str
from basicsr.utils.options import copy_opt_file, dict2str
from torch.utils.data import DataLoader

from basicsr_compat.pipeline.best import save_best
from basicsr_compat.pipeline.checkpoints import Progress, load_resume_state, progress_of
from basicsr_compat.pipeline.data import (
    ReadableLoader,
    batches,
    name_replaced_images,
    training_loader,
    validation_loader,
)
from basicsr_compat.pipeline.distributed import Watch, join
from basicsr_compat.pipeline.folders import RunFolders
from basicsr_compat.pipeline.naming import naming
from basicsr_compat.pipeline.randomness import ResumableSampler, global_randomness_kept
from basicsr_compat.pipeline.stops import Stop, Stops, ValidationStopped
from basicsr_compat.schema import OptionProblems, format_error


@dataclass
class Run:
    """What the caller of a training run or a test needs after a failure: how far it got, and what is open."""

    stops: Stops = field(default_factory=Stops)
    folders: RunFolders = field(default_factory=RunFolders)
    watch: Watch | None = None


@dataclass
class Training:
    """The state of a training run.

    epoch, iteration: the current ones, or the last.
    validated: iteration of the last validation.
    """

    opt: dict[str, Any]
    run: Run
    model: BaseModel
    progress: Progress
    loader: DataLoader
    sampler: ResumableSampler
    val_loaders: list[ReadableLoader]
    logger: logging.Logger
    tb_logger: Any
    epoch: int = 0
    iteration: int = 0
    validated: int | None = None


def train(opt: dict[str, Any], args: argparse.Namespace, run: Run) -> int:
    """Train a model.

    Args:
        opt: the options, from `read_options`.
        args: the command line.
        run: a new one.

    Returns:
        The exit code: 0; 1 where the state of a stopped training run could not be saved; 128 + the number of a signal.
    """
    run.watch = join(opt, args.launcher)
    torch.backends.cudnn.benchmark = True
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    run.folders.continues = restarted and opt["auto_resume"]
    state = load_resume_state(opt)
    with run.folders:
        if state is None:
            run.folders.make(opt)
        copy_opt_file(args.opt, opt["path"]["experiments_root"])
        logger = _open_log(opt, "train")
        tb_logger = init_tb_loggers(opt)
        loader, sampler = training_loader(opt)
        val_loaders = [validation_loader(phase, opt, run.stops.check) for phase in opt["datasets"] if phase != "train"]
        with naming(opt["model_type"], opt):
            model = build_model(opt)
        training = Training(opt, run, model, progress_of(model), loader, sampler, val_loaders, logger, tb_logger)
        if state is not None:
            _resume(training, state)
        started = time.time()
        _iterate(training)
        if stop := run.stops.due():
            code = _stop(training, stop)
        else:
            passed = datetime.timedelta(seconds=int(time.time() - started))
            logger.info(f"End of training. Time consumed: {passed}\nSave the latest model.")
            model.save(epoch=-1, current_iter=-1)  # -1 stands for the latest
            _validate(training)
            name_replaced_images(sampler.dataset, opt["world_size"])
            code = run.stops.exit_code()  # not 0 where a signal cut the last validation short
        if tb_logger:
            tb_logger.close()
        return code


def _open_log(opt: dict[str, Any], kind: str) -> logging.Logger:
    """Open BasicSR's logger with its file; it must not be used before."""
    log_file = os.path.join(opt["path"]["log"], f"{kind}_{opt['name']}_{get_time_str()}.log")
    logger = get_root_logger(logger_name="basicsr", log_level=logging.INFO, log_file=log_file)
    logger.info(get_env_info())
    logger.info(dict2str(opt))
    return logger


def _resume(training: Training, state: dict[str, Any]) -> None:
    """Continue from a state, in the middle of its epoch; makes up for a validation that was due when it was saved."""
    try:
        training.model.resume_training(state)
    except (KeyError, ValueError) as error:
        path = training.opt["path"]["resume_state"]
        raise OptionProblems(f"path.resume_state={path!r} does not fit this model: {format_error(error)}") from error
    training.epoch, training.iteration = state["epoch"], state["iter"]
    training.logger.info(f"Resuming training from epoch: {training.epoch}, iter: {training.iteration}.")
    training.sampler.resume(training.epoch, state.get("consumed", 0))
    val = training.opt.get("val")
    if val is not None and training.iteration % val["val_freq"] == 0:
        _validate(training)  # it came after the state was saved, and may never have ended


def _iterate(training: Training) -> None:
    """Train up to train.total_iter, or up to where a signal ends it."""
    opt, model, run, progress = training.opt, training.model, training.run, training.progress
    ahead = 4 if model.device.type == "cuda" else 0  # what its queue holds, some iterations at most
    run.stops.coordinate(opt["world_size"], opt["train"].get("accumulate", 1), ahead)
    message_logger = MessageLogger(opt, training.iteration, training.tb_logger)
    data_timer, iter_timer = AvgTimer(), AvgTimer()
    training.logger.info(f"Start training from epoch: {training.epoch}, iter: {training.iteration}")
    for epoch in itertools.count(training.epoch):
        if training.iteration >= opt["train"]["total_iter"]:
            return
        training.epoch = epoch
        training.sampler.set_epoch(epoch)
        progress.consumed = training.sampler.start
        with contextlib.closing(batches(training.loader, opt)) as epoch_batches:
            for batch in epoch_batches:
                data_timer.record()
                training.iteration += 1
                run.stops.iteration = current = training.iteration
                progress.consumed += training.loader.batch_size * opt["world_size"]
                model.update_learning_rate(current, warmup_iter=opt["train"].get("warmup_iter", -1))
                model.feed_data(batch)
                model.optimize_parameters(current)
                iter_timer.record()
                if not run.folders.begun:
                    run.folders.begin()
                    message_logger.reset_start_time()
                if current % opt["logger"]["print_freq"] == 0:
                    times = {"time": iter_timer.get_avg_time(), "data_time": data_timer.get_avg_time()}
                    rates = model.get_current_learning_rate()
                    message_logger({"epoch": epoch, "iter": current, "lrs": rates, **times, **model.get_current_log()})
                if current % opt["logger"]["save_checkpoint_freq"] == 0:
                    training.logger.info("Saving models and training states.")
                    model.save(epoch, current)
                if opt.get("val") is not None and current % opt["val"]["val_freq"] == 0:
                    _validate(training)
                if run.stops.due() or current >= opt["train"]["total_iter"]:
                    return
                data_timer.start()
                iter_timer.start()


def _validate(training: Training) -> None:
    """Validate on every set, once per iteration, without effect on the random draws of the training.

    BasicSR logs the last validation at total_iter + 1, twice, and measures against a stale training batch.
    """
    opt, model, now = training.opt, training.model, training.iteration
    if opt.get("val") is None or training.validated == now:
        return
    training.validated = now
    for index, loader in enumerate(training.val_loaders):
        model.__dict__.pop("gt", None)
        try:
            with global_randomness_kept():
                model.validation(loader, now, training.tb_logger, opt["val"]["save_img"])
        except ValidationStopped:
            return training.logger.info(f"The validation of iteration {now} was cut short by a signal.")
        if index == 0:
            save_best(model, opt["val"], now)


def _stop(training: Training, stop: Stop) -> int:
    """End the run after a signal: save what the iteration left. Returns the exit code."""
    opt, now = training.opt, training.iteration
    name, logger = stop.name, training.logger
    if now > stop.iteration:
        logger.error(f"{name}: this process was past iteration {stop.iteration} before it knew of the stop; nothing "
                     "is saved")  # fmt: skip
        return 1
    if now % opt["logger"]["save_checkpoint_freq"]:
        training.model.save(training.epoch, now)
    if opt["world_size"] > 1:
        torch.distributed.barrier()  # torchrun ends all ranks as soon as one ends
    if opt["rank"] == 0 and training.progress.saved != now:
        logger.error(f"{name}: stopped after iteration {now}, which could not be saved")
        return 1
    logger.info(f"{name}: stopped after iteration {now}, which is saved; --auto_resume continues from there")
    return training.run.stops.exit_code()


def test(opt: dict[str, Any], args: argparse.Namespace, run: Run) -> int:
    """Restore and measure the images of all sets of the options; see `train` for the arguments.

    Returns:
        The exit code: 0, or 1 where images were left out.
    """
    run.watch = join(opt, args.launcher)
    torch.backends.cudnn.benchmark = True
    with run.folders:
        run.folders.make(opt)
        logger = _open_log(opt, "test")
        loaders = {phase: validation_loader(phase, opt) for phase in sorted(opt["datasets"])}
        with naming(opt["model_type"], opt):
            model = build_model(opt)
        run.folders.begin()
        for phase, loader in loaders.items():
            logger.info(f"Testing {opt['datasets'][phase]['name']}...")
            model.validation(loader, current_iter=opt["name"], tb_logger=None, save_img=opt["val"]["save_img"])
    skipped = sum(len(loader.skipped) for loader in loaders.values())
    if skipped:
        print(f"basicsr test: {skipped} images were left out", file=sys.stderr)
    return 1 if skipped else 0
