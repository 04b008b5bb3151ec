"""Time, memory, and work of ITER next to single-pass networks, at 128x128 to 512x512, measured in turns in one run.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/inference.py --threads 2 --runs 3
    python benchmarks/inference.py --rows swinir/float32 iter/bf16 plain/float32
    python benchmarks/inference.py --threads 1 --cpu-time --rows rrdb/bf16 ncnn/float32 tiny@1/bf16 --ncnn FOLDER
    python benchmarks/inference.py --photos datasets/val/kodak24 --model iter_tiny_x4     # what bf16 costs in quality

Weights are random. A row is NETWORK/PRECISION: rrdb and swinir are BasicSR's (bf16: under autocast), iter and released
are ITER at the paper's and at the authors' released size with all 8 steps, tiny is iter_tiny_x4, iter@2 and tiny@4 are
the same from an adaptive start at step 2 and 4, ncnn is Real-ESRGAN x4plus in ncnn on the CPU (`real_esrgan.py` says
where its .param and .bin are, --ncnn their folder), onnxruntime is tiny by the files of `basicsr export`, iter-compiled
is with torch.compile (minutes to begin with), plain and plain-released are `benchmarks/plain.py`. The environment
variable gives PyTorch's CPU allocator large pages, for all rows alike.
"""

import argparse
import ctypes
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import basicsr_compat  # noqa: F401  isort: skip
import cv2
import numpy as np
import plain
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.swinir_arch import SwinIR
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from iter_arch import ITER, SamplingConfig, load_pretrained
from iter_arch.precision import choose_dtype
from iter_arch.pretrained.onnx import export_onnx
from iter_arch.sampling import keep_count, make_generators, sample

FORM = {"residual_groups": True, "gate": True}
RELEASED = {
    "vqgan": FORM,
    "lq_encoder": {"dim": 128, "depth": 6, "groups": 2} | FORM,
    "refiner": {"depth": 6, "groups": 4} | FORM,
    "evaluator": {"depth": 6, "groups": 4} | FORM,
}
ALL_STEPS = SamplingConfig(adaptive=False)
ROWS = [
    f"{name}/{precision}"
    for name in ("rrdb", "swinir", "iter", "iter@6", "iter@4", "iter@2", "released")
    for precision in ("float32", "bf16")
] + ["plain/float32", "plain-released/float32"]
CHOICES = [*ROWS, "iter-compiled/float32", "iter-compiled/bf16", "ncnn/float32", "onnxruntime/float32"]
CHOICES += [
    f"{name}/{precision}" for name in ("iter@1", "tiny", "tiny@1", "tiny@4") for precision in ("float32", "bf16")
]
Run = Callable[[], object]


def build(name: str) -> nn.Module:
    """The network of a row, in eval mode."""
    torch.manual_seed(0)
    if name == "rrdb":
        return RRDBNet(num_in_ch=3, num_out_ch=3, num_feat=64, num_block=23).eval()
    if name == "swinir":
        # BasicSR's inference_swinir.py, task real_sr.
        return SwinIR(
            upscale=4, img_size=64, window_size=8, img_range=1.0, depths=[6] * 6, embed_dim=180, num_heads=[6] * 6,
            mlp_ratio=2, upsampler="nearest+conv", resi_connection="1conv",
        ).eval()  # fmt: skip
    if name == "tiny":
        return load_pretrained("iter_tiny_x4")
    net = ITER(**(RELEASED if name == "released" else {})).eval()
    for part in (net.refiner, net.evaluator):
        part.head.weight.data.mul_(8)  # as different as the logits of a trained network
    if name == "iter-compiled":
        for part in (net.lq_encoder, net.refiner.swin, net.evaluator.swin, net.vqgan.decoder):
            part.compile()
    return net


def run_ncnn(folder: Path, lq: Tensor) -> Run:
    """Real-ESRGAN x4plus by ncnn on as many threads as PyTorch has."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute, net.opt.num_threads = False, torch.get_num_threads()
    for load, suffix in ((net.load_param, "param"), (net.load_model, "bin")):
        if load(str(folder / f"realesrgan-x4plus.{suffix}")):
            raise SystemExit(f"--ncnn {folder} holds no realesrgan-x4plus.{suffix} that ncnn reads")
    image = np.ascontiguousarray(lq[0].cpu().numpy())

    def run() -> object:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(image))
        return extractor.extract("output")[1]

    return run


def run_onnx(lq: Tensor) -> Run:
    """iter_tiny_x4 with all steps: Algorithm 2 around its exported networks in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        files = [path for path in export_onnx(load_pretrained("iter_tiny_x4"), folder) if path.suffix == ".onnx"]
        sessions = {path.stem: onnxruntime.InferenceSession(path, options) for path in files}

    def call(name: str, **inputs: Tensor) -> Tensor:
        return torch.from_numpy(sessions[name].run(None, {key: x.numpy() for key, x in inputs.items()})[0])

    def run() -> Tensor:
        S_l = call("lq_encoder", lq=lq).argmax(1)
        good = call("evaluator", S_t=S_l, S_l=S_l).softmax(1)[:, 1] >= ALL_STEPS.alpha
        sampled = sample(
            lambda S_t, m_t, rows: [(..., call("refiner", S_t=S_t, m_t=m_t, S_l=S_l, m_l=good))],
            lambda S_t, rows: [(..., call("evaluator", S_t=S_t, S_l=S_l))],
            S_l,
            good,
            config=ALL_STEPS,
            generators=make_generators(0, 1, lq.device),
        )
        return call("decoder", codes=call("codebook", tokens=sampled.tokens)).clamp(0, 1)

    return run


@torch.no_grad()
def adaptive_start(net: ITER, lq: Tensor, start: int) -> SamplingConfig:
    """A sampling whose alpha makes `restore` begin at step ``start``."""
    S_l = net.lq_encoder(lq.to(net.lq_encoder.head.weight.dtype)).argmax(1)
    good = net.evaluator(S_l, S_l).float().softmax(1)[:, 1].flatten().sort(descending=True).values
    above = keep_count(start + 1, 8, len(good), "cosine")
    config = SamplingConfig(alpha=good[(above + keep_count(start, 8, len(good), "cosine")) // 2 - 1].item())
    found = net.restore(lq, config=config).start_step.item()
    if found != start:
        raise RuntimeError(f"the start at step {start} came out as {found}: too many tokens are evaluated alike")
    return config


def prepare(
    row: str, networks: dict[tuple[str, str], nn.Module], lq: Tensor, ncnn: Path | None
) -> tuple[nn.Module | None, Run]:
    """(network, function to time) of a row; no network if it is not a PyTorch module."""
    name, precision = row.split("/")
    kind, _, start = name.partition("@")
    if kind == "ncnn":
        return None, run_ncnn(ncnn, lq)
    if kind == "onnxruntime":
        return None, run_onnx(lq)
    size = {"plain": "iter", "plain-released": "released"}.get(kind, kind)
    single_pass = kind in ("rrdb", "swinir")
    key = size, "float32" if single_pass else precision
    if key not in networks:
        networks[key] = build(size).to(lq.device, choose_dtype(key[1], lq.device))
    net = networks[key]
    if single_pass:

        def run() -> Tensor:
            with torch.autocast(lq.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return net(lq)

        return net, run
    if kind.startswith("plain"):
        return net, lambda: plain.restore(net, lq, config=ALL_STEPS)
    config = adaptive_start(net, lq, int(start)) if start else ALL_STEPS
    return net, lambda: net.restore(lq, config=config)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Seconds(NamedTuple):
    """How long a run takes, on the clock and in processor time of this process."""

    clock: float
    processor: float


def seconds(run: Run, device: torch.device) -> Seconds:
    synchronize(device)
    begin = Seconds(time.perf_counter(), time.process_time())
    run()
    synchronize(device)
    return Seconds(time.perf_counter() - begin.clock, time.process_time() - begin.processor)


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024


def peak_memory(run: Run, device: torch.device) -> float:
    """Peak MB beyond the weights; nan if the system does not report it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if not os.path.exists("/proc/self/clear_refs"):
        return float("nan")
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left in the allocator would hide what this one needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1e6


def shares(net: nn.Module, run: Run, device: torch.device) -> dict[str, float]:
    """Share of the time that each part of an ITER takes; empty for other networks."""
    if not isinstance(net, ITER):
        return {}
    parts = {
        "E_l": (net.lq_encoder.stem, net.lq_encoder.head),
        "phi_r": (net.refiner.swin, net.refiner.head),
        "phi_e": (net.evaluator.swin, net.evaluator.head),
        "decoder": (net.vqgan.decoder, net.vqgan.decoder),
    }
    spent, begun, handles = dict.fromkeys(parts, 0.0), {}, []

    def clock() -> float:
        synchronize(device)
        return time.perf_counter()

    for name, (first, last) in parts.items():
        handles.append(first.register_forward_pre_hook(lambda *_, name=name: begun.update({name: clock()})))
        handles.append(
            last.register_forward_hook(lambda *_, name=name: spent.update({name: spent[name] + clock() - begun[name]}))
        )
    whole = seconds(run, device).clock
    for handle in handles:
        handle.remove()
    return {name: part / whole for name, part in spent.items()}


def gmacs(run: Run) -> float:
    """1e9 multiply-adds of convolutions, matrix products and attention."""

    def attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
        return sdpa_flop(query, key, value)

    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops() / 2e9


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    extensions = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if capabilities.get(flag)]
    pages = ", large pages" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" else ""
    return f"{name} ({', '.join(extensions)}), {torch.get_num_threads()} threads{pages}, PyTorch {torch.__version__}"


def speed_table(args: argparse.Namespace, device: torch.device) -> None:
    lq = torch.rand(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0)).to(device)
    networks: dict[tuple[str, str], nn.Module] = {}
    with torch.inference_mode():
        rows = {row: prepare(row, networks, lq, args.ncnn) for row in args.rows}
        median = medians({row: run for row, (_, run) in rows.items()}, device, args.runs)
        compared = {row: times.processor if args.cpu_time else times.clock for row, times in median.items()}
        references = [row for row in ("swinir/float32", "swinir/bf16") if row in rows]
        size = f"{args.size}x{args.size} to {4 * args.size}x{4 * args.size}"
        head = [size, "CPU s", "clock s", "per output megapixel", *(f"of {row}" for row in references)]
        head += ["peak MB", "GMACs", "E_l", "phi_r", "phi_e", "decoder"]
        megapixels = 16 * args.size**2 / 1e6
        unit = "CPU time" if args.cpu_time else "the clock"
        print(f"**{hardware(device)}**; medians of {args.runs} runs in turns; ratios by {unit}\n")
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for row, (net, run) in rows.items():
            cells = [
                row,
                f"{median[row].processor:.3f}",
                f"{median[row].clock:.3f}",
                f"{compared[row] / megapixels:.2f}",
            ]
            cells += [f"{compared[row] / compared[other]:.2f}" for other in references]
            if args.quick:
                cells += [""] * 6
            else:
                parts = {} if row.startswith("plain") else shares(net, run, device)
                # The memory of ncnn and of onnxruntime stays with them between runs.
                cells += ["", ""] if net is None else [f"{peak_memory(run, device):.0f}", f"{gmacs(run):.0f}"]
                cells += [f"{parts[name]:.0%}" if name in parts else "" for name in head[-4:]]
            print(f"| {' | '.join(cells)} |", flush=True)


def medians(runs: dict[str, Run], device: torch.device, count: int) -> dict[str, Seconds]:
    """Medians of ``count`` times of every run, taken in turns after one that does not count."""
    for run in runs.values():
        run()
    times: dict[str, list[Seconds]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {name: Seconds(*map(statistics.median, zip(*found, strict=True))) for name, found in times.items()}


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * (a - b).square().mean().log10().item()


def quality_table(args: argparse.Namespace, device: torch.device) -> None:
    """Restores every photo, downscaled bicubically, in both precisions."""
    paths = sorted(path for path in Path(args.photos).iterdir() if path.suffix.lower() in (".png", ".jpg"))
    if not paths:
        raise SystemExit(f"--photos {args.photos} holds no PNG or JPEG files")
    networks = {
        precision: load_pretrained(args.model).to(device, choose_dtype(precision, device))
        for precision in ("float32", "bf16")
    }
    sums = torch.zeros(5, dtype=torch.float64)
    for path in paths:
        image = torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
        s = networks["float32"].scale
        gt = image[..., : args.size * s, : args.size * s].to(device)
        gt = gt[..., : gt.shape[2] // s * s, : gt.shape[3] // s * s]
        small = nn.functional.interpolate(gt, scale_factor=1 / s, mode="bicubic", antialias=True).clamp(0, 1)
        restored = {precision: net.restore(small) for precision, net in networks.items()}
        exact, half = restored["float32"], restored["bf16"]
        with torch.no_grad():
            decoded = [net.vqgan.decode(exact.tokens) for net in networks.values()]
        same = (exact.tokens == half.tokens).double().mean().item()
        sums += torch.tensor(
            [psnr(exact.image, gt), psnr(half.image, gt), psnr(half.image, exact.image), psnr(*decoded), same]
        ).double()
    means = (sums / len(paths)).tolist()
    print(f"\n{args.model} on the {len(paths)} photos of {args.photos}, corners of {args.size}x{args.size} LQ pixels\n")
    print("| PSNR float32 | PSNR bf16 | bf16 to float32 | same tokens decoded | tokens equal |\n|---|---|---|---|---|")
    print(f"| {means[0]:.3f} | {means[1]:.3f} | {means[2]:.1f} | {means[3]:.1f} | {means[4]:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=CHOICES, metavar="ROW", help=" ".join(CHOICES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--size", type=int, default=128, help="side of the LQ image, a multiple of 16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cpu-time", action="store_true", help="compare by CPU time, where others use the machine too")
    parser.add_argument("--ncnn", type=Path, default=".", help="folder of realesrgan-x4plus.param and .bin")
    parser.add_argument("--quick", action="store_true", help="times only")
    parser.add_argument("--photos", help="folder of photos: measure what bf16 costs in quality instead")
    parser.add_argument("--model", default="iter_tiny_x4", help="weights for --photos")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.size % 16 or args.size < 16 or args.runs < 1:
        sys.exit("--size must be a multiple of 16, at least 16, and --runs at least 1")
    device = torch.device(args.device)
    (quality_table if args.photos else speed_table)(args, device)


if __name__ == "__main__":
    main()
