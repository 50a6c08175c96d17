"""Is anything faster than conv1d for a depthwise convolution over time on this CPU, forward and backward?

    python benchmarks/depthwise_conv.py [threads]

Prints a Markdown table: milliseconds of the forward pass, of forward and backward together, and the largest error of
the output and of both gradients, relative to float64's largest value. An error above 1e-4 is a wrong result.
"""

import platform
import statistics
import sys
import time

import torch
from torch.nn import functional as F

# batch, channels, frames, kernel: quartznet_small, then QuartzNet 15x5 on small and large batches
CASES = [
    (32, 128, 200, 11),
    (32, 128, 200, 17),
    (4, 256, 400, 33),
    (4, 512, 400, 51),
    (4, 512, 400, 75),
    (32, 512, 400, 75),
]
REPEATS = 15


def conv1d(x, weight):
    return F.conv1d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])


def channels_last(x, weight):
    x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight.unsqueeze(2), padding=(0, weight.shape[-1] // 2), groups=x.shape[1]).squeeze(2)


def tall_image(x, weight):
    """As an image of width 1; the kernel pads. Its weight gradient is wrong for wide kernels."""
    return F.conv2d(x.unsqueeze(3), weight.unsqueeze(3), padding=(weight.shape[-1] // 2, 0), groups=x.shape[1]).squeeze(
        3
    )


def tall_image_padded(x, weight):
    """As an image of width 1, padded beforehand."""
    padding = weight.shape[-1] // 2
    x = F.pad(x, (padding, padding)).unsqueeze(3)
    return F.conv2d(x, weight.unsqueeze(3), groups=x.shape[1]).squeeze(3)


def tall_image_sliced(x, weight):
    """The same, in slices of the batch that fit the cache: what recipes/asr/model/convolution.py does."""
    size = max(1, (1 << 20) // (x.shape[1] * x.shape[2]))
    return torch.cat([tall_image_padded(part, weight) for part in x.split(size)])


def toeplitz(x, weight, block=32):
    """Blocks of frames times banded matrices, one batched product for all channels."""
    batch, channels, frames = x.shape
    kernel, count = weight.shape[-1], -(-frames // block)
    reach = block + kernel - 1
    x = F.pad(x, (kernel // 2, kernel // 2 + count * block - frames)).unfold(2, reach, block)
    x = x.permute(1, 0, 2, 3).reshape(channels, batch * count, reach)
    rows = F.pad(weight.squeeze(1), (0, block)).unsqueeze(1).expand(channels, block, block + kernel)
    bands = rows.reshape(channels, -1)[:, : block * reach].view(channels, block, reach)
    y = torch.bmm(x, bands.transpose(1, 2)).view(channels, batch, count * block)
    return y.permute(1, 0, 2)[..., :frames].contiguous()


def fft(x, weight):
    frames, kernel = x.shape[2], weight.shape[-1]
    size = -(-(frames + kernel // 2) // 32) * 32
    centred = F.pad(weight.squeeze(1), (0, size - kernel)).roll(-(kernel // 2), -1)
    return torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(centred).conj(), n=size)[..., :frames]


EVALUATIONS = [conv1d, channels_last, tall_image, tall_image_padded, tall_image_sliced, toeplitz, fft]


def milliseconds(run, *arguments):
    run(*arguments)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run(*arguments)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def results(evaluate, x, weight, slope):
    y = evaluate(x, weight)
    return (y, *torch.autograd.grad(y, (x, weight), slope))


def main():
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()} ({capability}),", end=" ")
    print(f"{torch.get_num_threads()} threads; median of {REPEATS}\n")
    print("| batch, channels, frames, kernel | evaluation | forward ms | with backward ms | error |")
    print("|---|---|---|---|---|")
    for batch, channels, frames, kernel in CASES:
        torch.manual_seed(0)
        x = torch.randn(batch, channels, frames, requires_grad=True)
        weight = torch.randn(channels, 1, kernel, requires_grad=True)
        slope = torch.randn(batch, channels, frames)
        exact_inputs = [t.detach().double().requires_grad_() for t in (x, weight)]
        exact = results(tall_image_padded, *exact_inputs, slope.double())
        for evaluate in EVALUATIONS:
            pairs = zip(results(evaluate, x, weight, slope), exact, strict=True)
            error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
            with torch.no_grad():
                forward = milliseconds(evaluate, x, weight)
            both = milliseconds(results, evaluate, x, weight, slope)
            case = f"{batch}, {channels}, {frames}, {kernel}"
            print(f"| {case} | {evaluate.__name__} | {forward:.2f} | {both:.2f} | {error:.0e} |", flush=True)


if __name__ == "__main__":
    main()
