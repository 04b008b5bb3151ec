"""What stages II and III train, as one module (ITER, arXiv:2312.05616, Algorithm 1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from iter_arch.iter_arch import ITER
from iter_arch.quantizer import Quantizer, all_codes
from iter_arch.sampling import draw_tokens, token_probabilities


class Predictions(NamedTuple):
    """What one training step predicts.

    lq_logits, refiner_logits: (b, N, h, w), of E_l and phi_r.
    drawn_logits, evaluator_logits: (b, 2, h, w), of phi_e on S_r and on S_l.
    S_l: (b, h, w) int64, the argmax of E_l. S_r: (b, h, w) int64, drawn from phi_r.
    """

    lq_logits: Tensor
    refiner_logits: Tensor
    drawn_logits: Tensor
    evaluator_logits: Tensor
    S_l: Tensor
    S_r: Tensor


class TrainedNetworks(nn.Module):
    """E_l, phi_r and phi_e as one module, so that DistributedDataParallel sees one forward per step (Algorithm 1)."""

    def __init__(self, net: ITER) -> None:
        super().__init__()
        self.lq_encoder = net.lq_encoder
        self.refiner = net.refiner
        self.evaluator = net.evaluator

    def forward(self, lq: Tensor, S_h: Tensor, m_t: Tensor, alpha: Tensor, uniform: Tensor) -> Predictions:
        """One step of Algorithm 1.

        Args:
            lq: (b, 3, H/s, W/s) RGB in [0, 1].
            S_h: (b, h, w) int64, the tokens of the HQ image.
            m_t: (b, h, w) bool, False = masked.
            alpha: (b,) in [0, 1), a threshold for m_l per image, like the one of Eq. 6 at test time.
            uniform: (b, h, w) in [0, 1), for the draw from phi_r.
        """
        lq_logits = self.lq_encoder(lq)
        S_l = lq_logits.detach().argmax(1)
        evaluator = self.evaluator.context(S_l)
        evaluator_logits = self.evaluator.logits(S_l, evaluator)
        # The evaluator's opinion, not whether S_l is right: at test time the refiner does not get the truth either.
        m_l = evaluator_logits.detach().float().softmax(1)[:, 1] >= alpha[:, None, None]
        refiner_logits = self.refiner(S_h, m_t, S_l, m_l)
        drawn = draw_tokens(token_probabilities(refiner_logits.detach()), uniform)
        S_r = torch.where(m_t, S_h, drawn)
        return Predictions(lq_logits, refiner_logits, self.evaluator.logits(S_r, evaluator), evaluator_logits, S_l, S_r)


@torch.no_grad()
def init_from_codebook(net: ITER, quantizer: Quantizer) -> None:
    """Initialize networks so that tokens with similar codes get similar embeddings and logits.

    The embeddings of phi_r and phi_e and the heads of E_l and phi_r become the standardized codes, each of them
    projected onto its own random directions.

    Args:
        quantizer: of the tokenizer of `net`.
    """
    codes = all_codes(quantizer, net.lq_encoder.head.weight.device)
    codes = (codes - codes.mean(0)) / codes.std()

    def in_random_directions(dim: int) -> Tensor:
        return codes @ nn.init.orthogonal_(codes.new_empty(codes.shape[1], dim))

    for network in (net.refiner, net.evaluator):
        dim = network.embedding.embedding_dim
        network.embedding.weight[: len(codes)] = (dim / codes.shape[1]) ** 0.5 * in_random_directions(dim)
    for head in (net.lq_encoder.head, net.refiner.head):
        head.weight.copy_(0.1 * in_random_directions(head.in_channels)[..., None, None])
