"""Stages II and III: distortion removal, token refinement and evaluation (ITER, arXiv:2312.05616, Algorithm 1)."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from basicsr_compat.schema import format_value
from iter_arch.checkpoint import load_strictly, read_checkpoint, save_pretrained
from iter_arch.color import match_color
from iter_arch.iter_arch import ITER
from iter_arch.released import tuned_sampling
from iter_arch.sampling import SamplingConfig, draw_tokens
from iter_arch.schedule import mask_ratio
from iter_data import PairPool, batch_to_pair, read_degradation
from iter_model.options import ITERTrainOptions, ITERValOptions, crop_problems, ground_truth_problems
from iter_model.training import TrainingMixin
from iter_model.validation import ValidationMixin

TRAINED = ("lq_encoder", "refiner", "evaluator")


class Predictions(NamedTuple):
    """What one training step predicts. Logits (b, N or 2, h, w); S_l, S_r (b, h, w) int64: argmax of E_l, drawn from
    phi_r."""

    lq_logits: Tensor
    refiner_logits: Tensor
    drawn_logits: Tensor
    evaluator_logits: Tensor
    S_l: Tensor
    S_r: Tensor


class TrainedNetworks(nn.Module):
    """E_l, phi_r and phi_e as one module, so that DistributedDataParallel sees one forward a step (Algorithm 1)."""

    def __init__(self, net: ITER) -> None:
        super().__init__()
        for name in TRAINED:
            setattr(self, name, getattr(net, name))

    def forward(self, lq: Tensor, S_h: Tensor, m_t: Tensor, alpha: Tensor, uniform: Tensor) -> Predictions:
        """One step of Algorithm 1.

        Args:
            lq: (b, 3, H/s, W/s). S_h: (b, h, w) int64, the tokens of the HQ image.
            m_t: (b, h, w) bool, False = masked.
            alpha: (b,) thresholds for m_l, as Eq. 6 uses one at test time.
            uniform: (b, h, w) in [0, 1), for the draw from phi_r.
        """
        lq_logits = self.lq_encoder(lq)
        S_l = lq_logits.detach().argmax(1)
        evaluator = self.evaluator.context(S_l)
        evaluator_logits = self.evaluator.logits(S_l, evaluator)
        # What the evaluator believes, not whether S_l is right: the refiner will not be told the truth at test time.
        m_l = evaluator_logits.detach().float().softmax(1)[:, 1] >= alpha[:, None, None]
        refiner_logits = self.refiner(S_h, m_t, S_l, m_l)
        drawn = draw_tokens(refiner_logits.detach().float().softmax(1), uniform)
        S_r = torch.where(m_t, S_h, drawn)
        return Predictions(lq_logits, refiner_logits, self.evaluator.logits(S_r, evaluator), evaluator_logits, S_l, S_r)


@torch.no_grad()
def init_from_codebook(net: ITER) -> None:
    """Start from what the codebook knows: tokens with similar codes get similar embeddings and logits.

    Embeddings and heads of E_l, phi_r and phi_e become the standardised codes, each in random directions of its own.
    """
    codes = net.vqgan.quantizer.embedding.weight
    codes = (codes - codes.mean(0)) / codes.std()

    def in_random_directions(dim: int) -> Tensor:
        return codes @ nn.init.orthogonal_(codes.new_empty(codes.shape[1], dim))

    for network in (net.refiner, net.evaluator):
        dim = network.embedding.embedding_dim
        network.embedding.weight[: len(codes)] = (dim / codes.shape[1]) ** 0.5 * in_random_directions(dim)
    for network in (net.lq_encoder, net.refiner):
        network.head.weight.copy_(0.1 * in_random_directions(network.head.in_channels)[..., None, None])


@MODEL_REGISTRY.register()
class ITERModel(ValidationMixin, TrainingMixin):
    """Trains E_l, phi_r and phi_e in the token space of a frozen Swin-VQGAN; validates the whole of ITER.

    Besides the declared sections: network_g of type ITER; path.pretrain_network_vqgan (a stage-I checkpoint, whose
    params_ema are taken where there are some, or a whole ITER; needed in training unless pretrain_network_g has a
    VQGAN, and even then to resume); path.pretrain_network_g (a whole ITER, of the authors' release too, or a checkpoint
    of this model).
    """

    train_options = ITERTrainOptions
    val_options = ITERValOptions
    trained_part: type[nn.Module] = TrainedNetworks

    # Known to the check of the options besides those of network_g.
    path_keys = ("pretrain_network_vqgan",)

    @classmethod
    def option_problems(
        cls, opt: Mapping[str, Any], is_train: bool, networks: Mapping[str, nn.Module]
    ) -> Iterator[str]:
        """See `TrainingMixin`."""
        problems = list(super().option_problems(opt, is_train, networks))
        yield from problems
        if not any(problem.startswith("val.") for problem in problems):
            yield from ground_truth_problems(opt)
        net = networks.get("network_g")
        if net is not None and not isinstance(net, ITER):
            yield f"network_g.type={opt['network_g']['type']} must be ITER for model_type {cls.__name__}"
        elif net is not None:
            if opt.get("scale") != net.scale:
                scale = format_value(opt.get("scale"))
                yield f"network_g.scale={net.scale} must be the scale of the data, scale={scale}"
            tile = (opt.get("val") or {}).get("tile")
            if isinstance(tile, int) and tile < net.multiple:
                yield f"val.tile={tile} must be at least {net.multiple}, the LQ pixels of a window of tokens"
        if is_train:
            if isinstance(net, ITER):
                yield from crop_problems(opt, net.multiple * net.scale)
            queue, batch = opt["train"].get("queue_size"), opt["datasets"]["train"].get("batch_size_per_gpu")
            if isinstance(queue, int) and isinstance(batch, int) and 0 < queue < batch:
                yield f"train.queue_size={queue} must be 0, or at least datasets.train.batch_size_per_gpu={batch}"
            yield from cls.missing_weights(opt["path"])

    @staticmethod
    def missing_weights(path: Mapping[str, Any]) -> Iterator[str]:
        """Say which weights that the training needs are not named in the yml's section `path`."""
        if not path.get("pretrain_network_vqgan") and not path.get("pretrain_network_g"):
            yield (
                "path.pretrain_network_vqgan is missing: stages II and III need a Swin-VQGAN; train one with "
                "`basicsr train -opt options/train_swin_vqgan.yml` and name its checkpoint here"
            )

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        self.read_options()
        self.build_metrics()
        self.iter = build_network(opt["network_g"])
        section = self.val.sampling
        self.sampling = tuned_sampling(self.iter.config) if section is None else SamplingConfig(**section)
        for problem in self.missing_weights(opt["path"]) if self.is_train else ():
            raise ValueError(problem)
        self.load_networks()
        self.iter.to(self.device, memory_format=self.memory_format)
        self.iter.vqgan.requires_grad_(False)
        self.iter.eval()
        self.net_g = self.trained_part(self.iter)
        if self.is_train:
            self.init_training_settings()
        self.print_network(self.net_g)

    def load_networks(self) -> None:
        """Fill `iter` from the files of the section `path`."""
        path = self.opt["path"]
        source = path.get("pretrain_network_g")
        vqgan = path.get("pretrain_network_vqgan")
        if source:
            state = read_checkpoint(source, path.get("param_key_g") or "params").state
            whole = any(name.startswith("vqgan.") for name in state)
            if not whole and not vqgan:
                raise ValueError(
                    f"path.pretrain_network_g={str(source)!r} holds no VQGAN; name one in path.pretrain_network_vqgan"
                )
            load_strictly(self.iter if whole else TrainedNetworks(self.iter), state, source)
            get_root_logger().info(f"Loaded {'ITER' if whole else 'its trained networks'} from {source}")
        if vqgan:
            state = read_checkpoint(vqgan).state
            part = {key.removeprefix("vqgan."): value for key, value in state.items() if key.startswith("vqgan.")}
            load_strictly(self.iter.vqgan, part or state, vqgan)
            get_root_logger().info(f"Loaded SwinVQGAN from {vqgan}")
        if self.is_train and self.train.codebook_init and not source:
            init_from_codebook(self.iter)

    def init_training_settings(self) -> None:
        # The format of the fastest convs; the trained networks' GroupNorm has a slow backward in it.
        self.iter.vqgan.to(memory_format=torch.channels_last)
        self.net_g = self.model_to_device(self.net_g)
        if self.train.ema_decay:
            # After DDP gave every rank the weights of rank 0; the frozen VQGAN is shared.
            self.iter_ema = copy.deepcopy(self.iter, {id(self.iter.vqgan): self.iter.vqgan}).requires_grad_(False)
            self.net_g_ema = TrainedNetworks(self.iter_ema)
            if self.opt["path"].get("pretrain_network_g"):
                # Of a resumed run, say: BasicSR then sets this path.
                state = read_checkpoint(self.opt["path"]["pretrain_network_g"]).state
                trained = {key: value for key, value in state.items() if not key.startswith("vqgan.")}
                load_strictly(self.net_g_ema, trained, self.opt["path"]["pretrain_network_g"])
        self.net_g.train()
        self.criteria = {
            "dist": build_loss(self.train.dist_opt).to(self.device),
            "refiner": build_loss(self.train.refiner_opt).to(self.device),
            "evaluator": build_loss(self.train.evaluator_opt).to(self.device),
        }
        self.prepare_data()
        self.optimizer_g = self.add_optimizer("optim_g", self.net_g.parameters())
        self.setup_schedulers()
        if self.train.compile:
            self.net_g.compile()
            self.iter.vqgan.encoder.compile()

    def prepare_data(self) -> None:
        """What `feed_data` makes pairs with."""
        train = self.opt["datasets"]["train"]
        self.degradation = read_degradation(train.get("degradation"), "datasets.train.degradation")
        self.pool = PairPool(self.train.queue_size) if self.train.queue_size else None

    def feed_data(self, data: Mapping[str, Any]) -> None:
        if "lq" in data:
            self.lq = data["lq"].to(self.device, non_blocking=True)
            self.gt = data["gt"].to(self.device, non_blocking=True) if "gt" in data else None
            return
        train = self.opt["datasets"]["train"]
        crop = train["gt_size"] if train.get("crop_pad_size") else None
        pair = batch_to_pair(
            data,
            device=self.device,
            scale=self.iter.scale,
            degradation=self.degradation,
            generator=self.generator,
            crop_size=crop,
        )
        self.lq, self.gt = pair if self.pool is None else self.pool.exchange(pair, self.generator)

    def draw_training_masks(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1: r ~ U(0, 1] an image, ceil(gamma(r) n) of its n positions masked at random.

        Args:
            shape: (b, h, w).

        Returns:
            m_t (b, h, w) bool, False = masked; alpha (b,) ~ U[0, 1); uniform (b, h, w) ~ U[0, 1).
        """
        b, h, w = shape
        r = 1 - torch.rand(b, generator=self.generator)
        masked = torch.ceil(mask_ratio(self.train.mask_schedule, r.double()) * h * w - 1e-6)
        rank = torch.rand(b, h * w, generator=self.generator).argsort(1).argsort(1)
        m_t = (rank >= masked[:, None]).view(b, h, w)
        alpha = torch.rand(b, generator=self.generator)
        uniform = torch.rand(b, h, w, generator=self.generator)
        return tuple(x.to(self.device, non_blocking=True) for x in (m_t, alpha, uniform))

    def optimize_parameters(self, current_iter: int) -> None:
        with self.autocast(), self.synchronized(self.net_g, current_iter):
            with torch.no_grad():
                S_h = self.iter.vqgan.quantizer.tokens(self.iter.vqgan.latent(self.gt))
            m_t, alpha, uniform = self.draw_training_masks(S_h.shape)
            predicted = self.net_g(self.lq, S_h, m_t, alpha, uniform)
        good_l, good_r = predicted.S_l == S_h, predicted.S_r == S_h
        losses = {
            "l_dist": self.criteria["dist"](predicted.lq_logits, S_h),
            "l_r": self.criteria["refiner"](predicted.refiner_logits, S_h),
            "l_e": self.criteria["evaluator"](predicted.drawn_logits, good_r, predicted.evaluator_logits, good_l),
        }
        self.backward(sum(losses.values()))
        self.step(self.optimizer_g, current_iter)
        if self.train.ema_decay:
            self.update_ema(self.net_g_ema, self.get_bare_model(self.net_g), current_iter)
        judged = predicted.evaluator_logits.detach().argmax(1) == 1
        self.losses = losses | {
            "acc_l": good_l.float().mean(),
            "acc_r": (predicted.refiner_logits.detach().argmax(1) == S_h).float().mean(),
            "acc_e": (judged == good_l).float().mean(),
        }

    @torch.no_grad()
    def test(self) -> None:
        net = getattr(self, "iter_ema", self.iter)
        trained = self.get_bare_model(self.net_g)
        was_training = trained.training
        net.eval()
        self.steps: list[tuple[int, Tensor, Tensor]] = []
        with self.autocast():
            restored = net.restore(
                self.lq,
                config=self.sampling,
                seed=self.val.seed,
                on_step=lambda t, tokens, mask: self.steps.append((t, tokens, mask)),
                tile=self.val.tile,
            )
        self.output = match_color(restored.image.float(), self.lq, self.val.color_correction, self.val.color_levels)
        trained.train(was_training)

    def draw(self) -> Tensor:
        """lq, S_l decoded, every step (what is masked there is dark), result and gt side by side, (3, H, W)."""
        height, width = self.output.shape[-2:]
        vqgan = self.iter.vqgan
        columns = [nn.functional.interpolate(self.lq, (height, width), mode="nearest")]
        with torch.no_grad():
            # Sampling starts from S_l, whatever of it is masked.
            columns.append(vqgan.decode(self.steps[0][1])[..., :height, :width])
            for _, tokens, mask in self.steps[:-1]:
                image = vqgan.decode(tokens)
                kept = nn.functional.interpolate(mask[:, None].float(), image.shape[-2:], mode="nearest")
                columns.append((image * (0.25 + 0.75 * kept))[..., :height, :width])
        columns.append(self.output)
        if self.gt is not None:
            columns.append(self.gt)
        return torch.cat(columns, dim=3)[0]

    def save(self, epoch: int, current_iter: int | str) -> None:
        networks, keys = [self.net_g], ["params"]
        if self.train.ema_decay:
            networks, keys = [self.net_g, self.net_g_ema], ["params", "params_ema"]
        self.save_network(networks, "net_g", current_iter, param_key=keys)
        self.save_training_state(epoch, current_iter)
        if current_iter in (-1, "best") and self.opt["rank"] == 0:
            # One file with all four networks, for `upscale` and `load_pretrained`.
            net = getattr(self, "iter_ema", self.iter)
            label = "latest" if current_iter == -1 else "best"
            save_pretrained(net, f"{self.opt['path']['models']}/iter_{label}.safetensors")

    def training_state(self, current_iter: int) -> dict[str, Any]:
        """See `TrainingMixin`."""
        state = super().training_state(current_iter)
        return state if self.pool is None else state | {"pool": self.pool.state_dict()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        super().load_training_state(state)
        # A pool of another size, in the yml since then, fills anew.
        if self.pool is not None and state.get("pool", {}).get("size") == self.pool.size:
            self.pool.load_state_dict(state["pool"], self.device)
