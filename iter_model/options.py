"""The options of this project's models; option_rules.py says which of them cannot be combined.

The model classes name these dataclasses. The check of the options takes keys, types, and ranges from here, and the
models read only the values that `read_model_options` returns, never the yml itself.
"""

import inspect
import random
from dataclasses import dataclass, fields
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from basicsr.models import lr_scheduler
from basicsr.utils.dist_util import get_dist_info

from basicsr_compat.pipeline.check import LoggerOptions
from basicsr_compat.pipeline.sections import Network, Section, type_in
from basicsr_compat.schema import Count, Natural, OneOf, OptionsOf, Positive, Probability, Rule, Weight, read_section
from iter_arch.color import DEFAULT_LEVELS, ColorMethod, Levels
from iter_arch.sampling import SamplingConfig, Schedule
from iter_data import Degradation, read_degradation

Decay = Annotated[float, Rule("in [0, 1)", lambda value: 0 <= value < 1)]

OPTIMIZERS = {
    name: found
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
}
# BasicSR's names; by MultiStepLR it means its own class.
SCHEDULERS = {
    "MultiStepLR": lr_scheduler.MultiStepRestartLR,
    "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}
Loss = Annotated[Section, type_in("loss")]
Metric = Annotated[
    Section,
    type_in(
        "metric",
        without=("img", "img2", "lq"),
        also={"better": Literal["higher", "lower"], "crop_border": Natural},
        # BasicSR's metrics take any keyword and look at none.
        swallows=lambda metric: metric.__module__.startswith("basicsr."),
    ),
]
Optimizer = Annotated[Section, OneOf("class of torch.optim", OPTIMIZERS.get, OPTIMIZERS.keys, without=("params",))]
Scheduler = Annotated[Section, OneOf("scheduler", SCHEDULERS.get, SCHEDULERS.keys, without=("optimizer", "last_epoch"))]


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How networks are trained.

    autocast: none (or ~) or bf16; losses, softmax, and quantizer distances stay float32.
    compile: whether torch.compile compiles the trained networks.
    channels_last: memory format of the trained networks; the discriminator and the frozen VQGAN always have it.
    accumulate: iterations whose gradients are averaged before the optimizers step. total_iter and all other counts are
        of iterations, not of steps.
    clip_grad_norm: largest norm of an optimizer's gradient; ~ for no limit.
    ema_decay: decay of the averaged weights that are validated and shipped; 0 for no average.
    """

    autocast: Literal["none", "bf16"] | None = None
    compile: bool = False
    channels_last: bool = False
    accumulate: Count = 1
    clip_grad_norm: Positive | None = None
    ema_decay: Decay = 0


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainerOptions):
    """What the section `train` has in every stage.

    warmup_iter: iterations in which the learning rate rises; -1 for none.
    """

    total_iter: Count
    warmup_iter: Annotated[int, Rule(">= -1", lambda value: value >= -1)] = -1
    optim_g: Optimizer
    scheduler: Scheduler


@dataclass(frozen=True, kw_only=True)
class AdversarialTrainOptions(TrainOptions):
    """The part of the section `train` that is about the discriminator; without gan_opt there is none.

    net_d_start_iter: first iteration with the GAN loss.
    """

    gan_opt: Loss | None = None
    optim_d: Optimizer | None = None
    net_d_start_iter: Natural = 0


@dataclass(frozen=True, kw_only=True)
class PairTrainOptions(TrainOptions):
    """The part of the section `train` that is about pairs of LQ and GT.

    queue_size: pairs in the pool that mixes degradations within a batch; 0 for no pool. Where workers degrade, each
        image has its own degradation, and there is nothing to mix.
    """

    queue_size: Natural = 0


@dataclass(frozen=True, kw_only=True)
class SwinVQGANTrainOptions(AdversarialTrainOptions):
    """The section `train` of stage I; a loss that is not named is not used.

    vq_weight: weight of the codebook's loss.
    quantize_start_iter: first iteration that quantizes, after a warm-up as a plain autoencoder; 1 for no warm-up.
    revive_freq: iterations after which codes that nothing chose are replaced by latents of the batch; 0 for never.
    decoder_only: whether only the decoder of path.pretrain_network_g is trained. Its tokens do not change, so
        everything that was trained on them stays valid.
    """

    pixel_opt: Loss | None = None
    ssim_opt: Loss | None = None
    perceptual_opt: Loss | None = None
    vq_weight: Weight = 1.0
    quantize_start_iter: Natural = 1
    revive_freq: Natural = 200
    decoder_only: bool = False


@dataclass(frozen=True, kw_only=True)
class ITERTrainOptions(PairTrainOptions):
    """The section `train` of stages II and III.

    mask_schedule: gamma of Algorithm 1.
    codebook_init: whether embeddings and heads start with similar values for tokens of similar codes.
    """

    dist_opt: Loss
    refiner_opt: Loss
    evaluator_opt: Loss
    mask_schedule: Schedule = "cosine"
    codebook_init: bool = False


@dataclass(frozen=True, kw_only=True)
class DecoderTrainOptions(PairTrainOptions, AdversarialTrainOptions):
    """The section `train` of stage IV; a loss that is not named is not used.

    expected_ratio: share of images at fidelity 1; the fidelity of the others is uniform in [0, 1).
    refined_ratio: share of images with tokens of phi_r at a random alpha, drawn as `network_g.sampling` says.
    gt_ratio: share of images with the tokens of their ground truth, so that the decoder does not forget these.
    mild_ratio: share of images whose degradation is mild, or, for half of them, none.
    """

    pixel_opt: Loss | None = None
    perceptual_opt: Loss | None = None
    expected_ratio: Probability = 1 / 3
    refined_ratio: Probability = 0.3
    gt_ratio: Probability = 0.1
    mild_ratio: Probability = 0.4


@dataclass(frozen=True, kw_only=True)
class ValOptions:
    """The section `val` of stage I, and part of that of every model.

    val_freq, save_img, suffix, metrics, and pbar are BasicSR's.

    key_metric: the one of `metrics` whose best value makes net_g_best.pth; ~ for none.
    bicubic: whether bicubic upsampling of the LQ is measured too.
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
    """The section `val` of stages II to IV.

    sampling: fields of `SamplingConfig`; ~ for those that the network's weights were tuned for.
    seed: seed of the sampling.
    tile: LQ pixels of a tile's side; ~ for no tiles.
    color_correction: how results get the colors of the LQ, see `iter_arch.color.match_color`; adain is the paper's.
    color_levels: levels of wavelet.
    """

    sampling: Annotated[Section | None, OptionsOf(SamplingConfig)] = None
    seed: Natural = 0
    tile: Count | None = None
    color_correction: ColorMethod = "adain"
    color_levels: Levels = DEFAULT_LEVELS


@dataclass(frozen=True, kw_only=True)
class SpandrelValOptions(ValOptions):
    """The section `val` of networks that spandrel reads.

    tile: LQ pixels of a tile's side; ~ for no tiles.
    color_correction: how results get the colors of the LQ, see `iter_arch.color.match_color`.
    color_levels: levels of wavelet.
    """

    tile: Count | None = None
    color_correction: ColorMethod = "none"
    color_levels: Levels = DEFAULT_LEVELS


@dataclass(frozen=True, kw_only=True)
class CommonRunOptions:
    """What every yml has. The sections of data sets and `path` are checked where their classes are known."""

    name: str
    model_type: str
    num_gpu: Natural | Literal["auto"] = "auto"
    manual_seed: Natural | None = None
    datasets: Section
    path: Section
    train: Section | None = None
    val: Section | None = None
    logger: LoggerOptions
    dist_params: Section | None = None
    find_unused_parameters: bool = False


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonRunOptions):
    """The yml of a run of ITER or SwinVQGAN."""

    scale: Literal[1, 2, 4, 8]
    network_g: Network


@dataclass(frozen=True, kw_only=True)
class SpandrelRunOptions(CommonRunOptions):
    """The yml of a test of a network that spandrel reads; which network it is, its file alone says."""

    scale: Count
    network_g: None = None


@dataclass(frozen=True, kw_only=True)
class Paths:
    """What the models read of the section `path`, with the run's folders, which BasicSR adds to it.

    pretrain_network_*: checkpoints to start from; BasicSR sets them where it resumes.
    started_from: the pretrain_network_g of the yml, in a run that was resumed.
    param_key_g: the state dict of pretrain_network_g to load; ~ for params in a training run, params_ema in a test.
    """

    pretrain_network_g: str | None = None
    started_from: str | None = None
    param_key_g: str | None = None
    pretrain_network_d: str | None = None
    pretrain_network_vqgan: str | None = None
    pretrain_network_iter: str | None = None
    resume_state: str | None = None
    models: str = ""
    visualization: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What the models read of the section datasets.train; crop_size and degradation as in `iter_data.make_pair`."""

    gt_usm: bool
    crop_size: int | None
    degradation: Degradation


Train = TypeVar("Train", bound=TrainOptions)
Val = TypeVar("Val", bound=ValOptions)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Generic[Train, Val]):
    """Everything that a model reads from its options.

    training_set: None in a test.
    train: in a test, where the section is not read, only what `TrainerOptions` has.
    """

    name: str
    is_train: bool
    manual_seed: int
    rank: int
    world_size: int
    network_g: Section
    network_d: Section | None
    paths: Paths
    training_set: TrainingSet | None
    train: Train
    val: Val


def read_model_options(opt: Section, train_options: type[Train], val_options: type[Val]) -> ModelOptions[Train, Val]:
    """Read the options that BasicSR gives a model.

    Args:
        opt: the yml, completed by BasicSR.
        train_options, val_options: the dataclasses of the sections `train` and `val`.

    Raises:
        ValueError: a section does not fit its dataclass; one line per problem.
    """
    is_train = opt["is_train"]
    rank, world_size = get_dist_info()
    seed = opt.get("manual_seed")
    train: Any = read_section(train_options, opt["train"], "train") if is_train else TrainerOptions()
    given = {field.name: opt["path"].get(field.name) for field in fields(Paths)}
    return ModelOptions(
        name=opt["name"],
        is_train=is_train,
        manual_seed=random.randint(1, 10000) if seed is None else seed,  # as BasicSR draws it
        rank=rank,
        world_size=world_size,
        network_g=opt.get("network_g") or {},
        network_d=opt.get("network_d"),
        paths=Paths(**{name: value for name, value in given.items() if value}),
        training_set=_read_training_set(opt["datasets"]["train"]) if is_train else None,
        train=train,
        val=read_section(val_options, opt.get("val") or {}, "val"),
    )


def _read_training_set(section: Section) -> TrainingSet:
    return TrainingSet(
        gt_usm=bool(section.get("gt_usm")),
        crop_size=section["gt_size"] if section.get("crop_pad_size") else None,
        degradation=read_degradation(section.get("degradation"), "datasets.train.degradation"),
    )
