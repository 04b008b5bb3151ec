"""Small random networks of other projects, saved in their authors' formats."""

import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.archs.swinir_arch import SwinIR


def rrdb(path, scale=4):
    """Real-ESRGAN's file: RRDBNet under params_ema."""
    torch.manual_seed(0)
    net = RRDBNet(3, 3, scale=scale, num_feat=16, num_block=1, num_grow_ch=32).eval()
    torch.save({"params_ema": net.state_dict()}, path)
    return net


def compact(path, scale=3, channels=3):
    """Real-ESRGAN's small models: SRVGGNetCompact under params."""
    torch.manual_seed(0)
    net = SRVGGNetCompact(channels, channels, num_feat=16, num_conv=2, upscale=scale, act_type="prelu").eval()
    torch.save({"params": net.state_dict()}, path)
    return net


def swinir(path, scale=2):
    """SwinIR's file of its task of real photos; the layers beside the networks are as its authors name them."""
    torch.manual_seed(0)
    net = SwinIR(
        upscale=scale, img_size=64, window_size=8, img_range=1.0, depths=[2, 2], embed_dim=24, num_heads=[2, 2],
        mlp_ratio=2, upsampler="pixelshuffle", resi_connection="1conv",
    ).eval()  # fmt: skip
    torch.save({"params": net.state_dict()}, path)
    return net
