"""Tier 1: repairs of what keeps BasicSR 1.4.2 from importing and running; a host project does not notice them.

A function that works, such as one on a GPU, runs unchanged. On a CPU the same code runs with stand-ins for what
insists on CUDA. Faults are found by running the function on stand-ins, not by the version: BasicSR's git
main is called 1.4.2 too, but has some faults fixed.
"""

from __future__ import annotations

import functools
import inspect
import os
from types import SimpleNamespace
from typing import Any

from basicsr_compat.patching import Repair, StandIn, with_globals


class _Fault(Exception):
    """What a function of BasicSR would do, and must not on a CPU."""


def _fails(errors: type[Exception] | tuple[type[Exception], ...], function, *args) -> bool:
    """Whether the call raises one of these errors. Any other error is not understood, so nothing is repaired then."""
    try:
        function(*args)
    except errors:
        return True
    except Exception:
        return False
    return False


class _View:
    """A module as a function of BasicSR sees it: `replaced` instead of some of its attributes."""

    def __init__(self, module: Any, **replaced: Any):
        vars(self).update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _cpu_torch(devices: int, **replaced: Any) -> _View:
    """torch without CUDA: choosing a device is a fault where there is none, and does nothing otherwise."""
    import torch

    def choose(index=None):
        if devices == 0:
            raise _Fault("CUDA")

    cuda = _View(
        torch.cuda,
        is_available=lambda: False,
        device_count=lambda: devices,
        set_device=choose,
        current_device=choose,
    )
    return _View(torch, cuda=cuda, **replaced)


def _wants_cuda(*args, **kwargs) -> SimpleNamespace:
    """A stand-in for a constructor; sending its result to CUDA is a fault."""

    def cuda(device=None):
        raise _Fault("CUDA")

    return SimpleNamespace(cuda=cuda, to=lambda device: None)


def _stays(make):
    """`make` for code that sends the result to CUDA: the result stays on its device."""
    return lambda *args, **kwargs: SimpleNamespace(cuda=lambda: make(*args, **kwargs))


# ------------------------------------------------------------------------------------------- images


def _refuses_float_quality(add) -> bool:
    import cv2
    import numpy as np

    return _fails((cv2.error, TypeError), add, np.zeros((8, 8, 3), np.float32), 50.5)


def integer_quality(add):
    """Round the quality down to a whole number, as OpenCV used to do itself."""

    @functools.wraps(add)
    def add_jpg_compression(img, quality=90):
        return add(img, int(quality))

    return add_jpg_compression


def _refuses_channels_last(filter2d) -> bool:
    import torch

    image = torch.zeros(2, 2, 4, 4).to(memory_format=torch.channels_last)
    return _fails(RuntimeError, filter2d, image, torch.zeros(1, 3, 3))


def contiguous_input(filter2d):
    """Make the image contiguous first."""

    @functools.wraps(filter2d)
    def filter2D(img, kernel):  # noqa: N802
        return filter2d(img.contiguous(), kernel)

    return filter2D


# ------------------------------------------------------------------------------------------- distributed, resume


def _needs_gpus(init) -> bool:
    import torch

    def start(backend, **kwargs):
        if backend != "gloo":
            raise _Fault(backend)

    environment = {"RANK": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NODELIST": "node"}
    on_a_cpu = with_globals(
        init,
        torch=_cpu_torch(devices=0),
        dist=_View(torch.distributed, init_process_group=start),
        os=_View(os, environ=environment),
        subprocess=SimpleNamespace(getoutput=lambda command: "node"),
    )
    return _fails((_Fault, ZeroDivisionError), on_a_cpu, "nccl")


def gloo_on_a_cpu(init):
    """On a CPU, do not divide by the number of GPUs, and use the backend gloo."""

    @functools.wraps(init)
    def init_process_group(backend, **kwargs):
        import torch

        if torch.cuda.is_available():
            return init(backend, **kwargs)

        def start(backend, **kwargs):
            torch.distributed.init_process_group("gloo", **kwargs)

        group = _View(torch.distributed, init_process_group=start)
        return with_globals(init, torch=_cpu_torch(devices=1), dist=group)(backend, **kwargs)

    return init_process_group


def _wants_cuda_ids(model_to_device) -> bool:
    import torch

    def wrap(net, device_ids=None, **kwargs):
        if device_ids:
            raise _Fault(device_ids)

    model = SimpleNamespace(device=torch.device("cpu"), opt={"dist": True, "num_gpu": 0})
    on_a_cpu = with_globals(model_to_device, torch=_cpu_torch(devices=0), DistributedDataParallel=wrap)
    return _fails(_Fault, on_a_cpu, model, torch.nn.Identity())


def no_cuda_ids_on_a_cpu(model_to_device):
    """Give DistributedDataParallel no device numbers for a network on a CPU."""

    @functools.wraps(model_to_device)
    def to_device(self, net):
        if self.device.type != "cpu":
            return model_to_device(self, net)
        from torch.nn.parallel import DistributedDataParallel

        def wrap(net, device_ids=None, **kwargs):
            return DistributedDataParallel(net, **kwargs)

        on_a_cpu = with_globals(model_to_device, torch=_cpu_torch(devices=1), DistributedDataParallel=wrap)
        return on_a_cpu(self, net)

    return to_device


def _asks_for_the_cuda_device(load_resume_state) -> bool:
    without_cuda = _cpu_torch(devices=0, load=lambda path, map_location=None: {"iter": 0})
    on_a_cpu = with_globals(load_resume_state, torch=without_cuda, check_resume=lambda opt, resume_iter: None)
    return _fails(_Fault, on_a_cpu, {"auto_resume": False, "num_gpu": 0, "path": {"resume_state": "0.state"}})


def states_on_a_cpu(load_resume_state):
    """Keep the tensors of the state on the CPU where there is no CUDA device."""

    @functools.wraps(load_resume_state)
    def load(opt):
        import torch

        if torch.cuda.is_available():
            return load_resume_state(opt)

        def on_cpu(path, map_location=None, **kwargs):
            return torch.load(path, map_location="cpu", **kwargs)

        return with_globals(load_resume_state, torch=_cpu_torch(devices=1, load=on_cpu))(opt)

    return load


# ------------------------------------------------------------------------------------------- RealESRGAN, RealESRNet


def _sends_its_modules_to_cuda(init) -> bool:
    import torch

    base = type("Base", (), {"__init__": lambda self, opt: None, "device": torch.device("cpu")})
    model = type("Model", (base,), {})
    stand_ins = {init.__qualname__.partition(".")[0]: model, "DiffJPEG": _wants_cuda, "USMSharp": _wants_cuda}
    return _fails(_Fault, with_globals(init, **stand_ins), model(None), {"num_gpu": 0})


def modules_stay_on_the_cpu(init):
    """Keep the JPEG compressor and the sharpener on the device of the images."""

    @functools.wraps(init)
    def __init__(self, opt):  # noqa: N807
        if opt["num_gpu"] != 0:
            return init(self, opt)
        make = {name: _stays(init.__globals__[name]) for name in ("DiffJPEG", "USMSharp")}
        return with_globals(init, **make)(self, opt)

    return __init__


def _makes_its_pool_on_cuda(pool) -> bool:
    import torch

    images = {"lq": torch.zeros(1, 3, 1, 1), "gt": torch.zeros(1, 3, 4, 4)}
    model = SimpleNamespace(queue_size=1, device=torch.device("cpu"), **images)
    return _fails(_Fault, with_globals(inspect.unwrap(pool), torch=_View(torch, zeros=_wants_cuda)), model)


def pool_on_the_cpu(dequeue_and_enqueue):
    """Make the pool of training pairs on the device of the pairs."""

    @functools.wraps(dequeue_and_enqueue)
    def call(self):
        import torch

        if self.device.type != "cpu":
            return dequeue_and_enqueue(self)
        pool = with_globals(inspect.unwrap(dequeue_and_enqueue), torch=_View(torch, zeros=_stays(torch.zeros)))
        with torch.no_grad():
            return pool(self)

    return call


# ------------------------------------------------------------------------------------------- the table


def _of_realesrgan(name: str, model: str) -> tuple[Repair, Repair]:
    module = f"basicsr.models.{name}"
    return (
        Repair(
            target=f"{module}:{model}.__init__",
            is_broken=_sends_its_modules_to_cuda,
            replacement=modules_stay_on_the_cpu,
            reason="sends its DiffJPEG and USMSharp to CUDA when it is built, whatever num_gpu says",
        ),
        Repair(
            target=f"{module}:{model}._dequeue_and_enqueue",
            is_broken=_makes_its_pool_on_cuda,
            replacement=pool_on_the_cpu,
            reason="makes its pool of training pairs on CUDA, whatever num_gpu says",
        ),
    )


REPAIRS: tuple[StandIn | Repair, ...] = (
    StandIn(
        target="torchvision.transforms.functional_tensor",
        replacement="torchvision.transforms._functional_tensor",
        reason="basicsr.data.degradations imports it; torchvision 0.17 renamed it",
    ),
    StandIn(
        target="scipy.ndimage.filters",
        replacement="scipy.ndimage",
        reason="basicsr.metrics.niqe imports it; SciPy 2 removes it",
    ),
    Repair(
        target="basicsr.utils.img_process_util:filter2D",
        is_broken=_refuses_channels_last,
        replacement=contiguous_input,
        reason="`view` fails on channels-last images, as DiffJPEG returns on a CPU",
    ),
    Repair(
        target="basicsr.data.degradations:add_jpg_compression",
        is_broken=_refuses_float_quality,
        replacement=integer_quality,
        reason="OpenCV refuses the float quality that random_add_jpg_compression draws",
    ),
    Repair(
        target="basicsr.utils.dist_util:_init_dist_pytorch",
        is_broken=_needs_gpus,
        replacement=gloo_on_a_cpu,
        reason="divides by the number of GPUs, 0 on a CPU, and starts NCCL there",
    ),
    Repair(
        target="basicsr.utils.dist_util:_init_dist_slurm",
        is_broken=_needs_gpus,
        replacement=gloo_on_a_cpu,
        reason="divides by the number of GPUs, 0 on a CPU, and starts NCCL there",
    ),
    Repair(
        target="basicsr.models.base_model:BaseModel.model_to_device",
        is_broken=_wants_cuda_ids,
        replacement=no_cuda_ids_on_a_cpu,
        reason="gives DistributedDataParallel the number of a CUDA device on a CPU",
    ),
    Repair(
        target="basicsr.train:load_resume_state",
        is_broken=_asks_for_the_cuda_device,
        replacement=states_on_a_cpu,
        reason="asks for the current CUDA device, and loads the state onto it",
    ),
    *_of_realesrgan("realesrgan_model", "RealESRGANModel"),
    *_of_realesrgan("realesrnet_model", "RealESRNetModel"),
)


def repair() -> None:
    """Fix every fault of the table when its module is imported, or now if it is already; safe to call again."""
    for one in REPAIRS:
        one.arm()
