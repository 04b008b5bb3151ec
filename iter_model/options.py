"""What a yml may hold for the models of this project, and what of it cannot go together.

The model classes name these dataclasses, the check of the options knows their keys, types and ranges from here, and the
models read the values from here.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from basicsr.models import lr_scheduler

from basicsr_compat.pipeline.check import LoggerOptions, Network, registered
from basicsr_compat.schema import Count, Natural, OneOf, OptionsOf, Positive, Probability, Rule, Weight, format_value
from iter_arch.color import DEFAULT_LEVELS, ColorMethod, Levels
from iter_arch.sampling import SamplingConfig, Schedule

Section = Mapping[str, Any]
Decay = Annotated[float, Rule("in [0, 1)", lambda value: 0 <= value < 1)]

_OPTIMIZERS = {
    name: found
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
}
# BasicSR's names; it takes MultiStepLR for its own class.
_SCHEDULERS = {
    "MultiStepLR": lr_scheduler.MultiStepRestartLR,
    "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}
Loss = Annotated[Section, registered("loss")]
Metric = Annotated[
    Section,
    registered(
        "metric",
        without=("img", "img2"),
        also={"better": Literal["higher", "lower"], "crop_border": Natural},
        # BasicSR's metrics take any keyword and look at none.
        swallows=lambda metric: metric.__module__.startswith("basicsr."),
    ),
]
Optimizer = Annotated[Section, OneOf("class of torch.optim", _OPTIMIZERS.get, _OPTIMIZERS.keys, without=("params",))]
Scheduler = Annotated[
    Section, OneOf("scheduler", _SCHEDULERS.get, _SCHEDULERS.keys, without=("optimizer", "last_epoch"))
]


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How networks are trained.

    autocast: none (or ~) or bf16; losses, softmax and quantiser distances stay float32.
    compile: torch.compile the trained networks.
    channels_last: memory format of the trained networks; the discriminator and the frozen VQGAN always have it.
    accumulate: iterations whose gradients are averaged before the optimisers step.
    clip_grad_norm: largest norm of an optimiser's gradient; ~ for none.
    ema_decay: decay of the averaged weights that are validated and shipped; 0, no average.
    """

    autocast: Literal["none", "bf16"] | None = None
    compile: bool = False
    channels_last: bool = False
    accumulate: Count = 1
    clip_grad_norm: Positive | None = None
    ema_decay: Decay = 0


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainerOptions):
    """The section `train` of both stages. warmup_iter: iterations in which the learning rate rises; -1, none."""

    total_iter: Count
    warmup_iter: Annotated[int, Rule(">= -1", lambda value: value >= -1)] = -1
    optim_g: Optimizer
    scheduler: Scheduler


@dataclass(frozen=True, kw_only=True)
class SwinVQGANTrainOptions(TrainOptions):
    """The section `train` of stage I; a loss that is not named is not used.

    vq_weight: of the loss of the codebook.
    quantize_start_iter: first iteration that quantises, after a warm-up as a plain autoencoder; 1, no warm-up.
    net_d_start_iter: first iteration with the GAN loss.
    revive_freq: iterations after which codes that nothing chose are replaced by latents of the batch; 0, never.
    decoder_only: train the decoder alone, of path.pretrain_network_g; its tokens, and all that was trained on them,
        stay as they are.
    """

    pixel_opt: Loss | None = None
    ssim_opt: Loss | None = None
    perceptual_opt: Loss | None = None
    gan_opt: Loss | None = None
    optim_d: Optimizer | None = None
    vq_weight: Weight = 1.0
    quantize_start_iter: Natural = 1
    net_d_start_iter: Natural = 0
    revive_freq: Natural = 200
    decoder_only: bool = False


@dataclass(frozen=True, kw_only=True)
class ITERTrainOptions(TrainOptions):
    """The section `train` of stages II and III.

    mask_schedule: gamma of Algorithm 1.
    queue_size: pairs in the pool that mixes degradations within a batch; 0, none.
    codebook_init: start with embeddings and heads in which tokens of similar codes are similar.
    """

    dist_opt: Loss
    refiner_opt: Loss
    evaluator_opt: Loss
    mask_schedule: Schedule = "cosine"
    queue_size: Natural = 0
    codebook_init: bool = False


@dataclass(frozen=True, kw_only=True)
class DecoderTrainOptions(TrainOptions):
    """The section `train` of stage IV; a loss that is not named is not used.

    net_d_start_iter: first iteration with the GAN loss.
    queue_size: as in stages II and III.
    expected_ratio: share of images at fidelity 1; the others' is uniform in [0, 1).
    refined_ratio: share of images with tokens of phi_r at a random alpha, as `network_g.sampling` draws them.
    gt_ratio: share of images with the tokens of their ground truth, so that these are not forgotten.
    mild_ratio: share of images whose degradation is mild, or, for half of them, none.
    """

    pixel_opt: Loss | None = None
    perceptual_opt: Loss | None = None
    gan_opt: Loss | None = None
    optim_d: Optimizer | None = None
    net_d_start_iter: Natural = 0
    queue_size: Natural = 0
    expected_ratio: Probability = 1 / 3
    refined_ratio: Probability = 0.3
    gt_ratio: Probability = 0.1
    mild_ratio: Probability = 0.4


@dataclass(frozen=True, kw_only=True)
class ValOptions:
    """The section `val` of both stages; val_freq, save_img, suffix, metrics and pbar are BasicSR's.

    key_metric: of `metrics`, the one whose best value makes net_g_best.pth; ~ for none.
    bicubic: measure bicubic upsampling of the LQ too.
    tb_images: how many images go to TensorBoard.
    """

    val_freq: Count = 5000
    save_img: bool = False
    suffix: str | None = None
    metrics: dict[str, Metric] | None = None
    pbar: bool = False
    key_metric: str | None = None
    bicubic: bool = False
    tb_images: Natural = 4


@dataclass(frozen=True, kw_only=True)
class ITERValOptions(ValOptions):
    """The section `val` of stages II and III.

    sampling: fields of `SamplingConfig`; ~ for those that the network's weights were tuned for.
    seed: of the sampling.
    tile: LQ pixels of a tile's side; ~ for no tiles.
    color_correction: of the results, see `iter_arch.color.match_color`; adain is the paper's.
    color_levels: of wavelet.
    """

    sampling: Annotated[Section | None, OptionsOf(SamplingConfig)] = None
    seed: Natural = 0
    tile: Count | None = None
    color_correction: ColorMethod = "adain"
    color_levels: Levels = DEFAULT_LEVELS


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The yml. Its sections are checked by themselves, those of data sets and `path` where their classes are known."""

    name: str
    model_type: str
    scale: Literal[1, 2, 4, 8]
    num_gpu: Natural | Literal["auto"] = "auto"
    manual_seed: Natural | None = None
    datasets: Section
    network_g: Network
    path: Section
    train: Section | None = None
    val: Section | None = None
    logger: LoggerOptions
    dist_params: Section | None = None
    find_unused_parameters: bool = False


def impossible_optimizers(train: Section) -> Iterator[str]:
    """Ranges that only the classes themselves know."""
    for key in ("optim_g", "optim_d"):
        if not train.get(key):
            continue
        options = {name: value for name, value in train[key].items() if name != "type"}
        try:
            optimizer = _OPTIMIZERS[train[key]["type"]]([torch.nn.Parameter(torch.zeros(1))], **options)
        except Exception as error:  # whatever a class says to what it is not made for
            yield f"train.{key}={format_value(train[key])} is impossible: {error}"
            continue
        options = {name: value for name, value in train["scheduler"].items() if name != "type"}
        try:
            _SCHEDULERS[train["scheduler"]["type"]](optimizer, **options)
        except Exception as error:
            yield f"train.scheduler={format_value(train['scheduler'])} is impossible: {error}"


def gan_problems(opt: Section) -> Iterator[str]:
    """A GAN loss needs a discriminator and its optimizer."""
    if opt["train"].get("gan_opt"):
        for name, section in (("network_d", opt), ("train.optim_d", opt["train"])):
            if not section.get(name.removeprefix("train.")):
                yield f"{name} is missing: train.gan_opt needs it; or take train.gan_opt out"


def crop_problems(opt: Section, multiple: int) -> Iterator[str]:
    """gt_size must be a multiple of the pixels that one window of tokens covers."""
    size = opt["datasets"]["train"].get("gt_size")
    if isinstance(size, int) and size % multiple:
        yield (
            f"datasets.train.gt_size={size} must be a multiple of {multiple}, the pixels that a window of tokens of "
            "network_g covers"
        )


def ground_truth_problems(opt: Section) -> Iterator[str]:
    """Metrics against a GT, where the data set has none."""
    metrics = (opt.get("val") or {}).get("metrics") or {}
    for phase, dataset in opt["datasets"].items():
        if phase == "train" or dataset.get("type") != "SingleImageDataset":
            continue
        for name, metric in metrics.items():
            function = registered("metric").find(metric["type"])
            parameter = inspect.signature(function).parameters.get("img2") if function else None
            if parameter is not None and parameter.default is parameter.empty:
                yield (
                    f"val.metrics.{name}={metric['type']} compares with the ground truth, which datasets.{phase} of "
                    "type SingleImageDataset does not have: take the metric out, or use PairedImageDataset"
                )
