"""Parameter shapes of the models that optimizers are timed on, from their block lists."""

from collections.abc import Callable

Shapes = list[tuple[int, ...]]

MEL, LABELS = 64, 29
# (filters, kernel, repeat, residual) of the encoder blocks between the first convolution and the last two.
QUARTZNET_15X5 = [
    (filters, kernel) for filters, kernel in [(256, 33), (256, 39), (512, 51), (512, 63), (512, 75)] for _ in range(3)
]
JASPER_10X5 = [
    (filters, kernel) for filters, kernel in [(256, 11), (384, 13), (512, 17), (640, 21), (768, 25)] for _ in range(2)
]


def quartznet_15x5() -> Shapes:
    """18.9 million parameters in 358 tensors: separable convolutions, one residual branch per block."""
    shapes = _separable(MEL, 256, 33)
    channels = 256
    for filters, kernel in QUARTZNET_15X5:
        for sub_block in range(5):
            shapes += _separable(filters if sub_block else channels, filters, kernel)
        shapes += _dense(channels, filters, 1)
        channels = filters
    shapes += _separable(channels, 512, 87) + _dense(512, 1024, 1)
    return shapes + _decoder(1024)


def jasper_10x5dr() -> Shapes:
    """332.6 million parameters in 326 tensors: dense convolutions, branches from all blocks before."""
    shapes = _dense(MEL, 256, 11)
    inputs = [256]
    for filters, kernel in JASPER_10X5:
        for sub_block in range(5):
            shapes += _dense(filters if sub_block else inputs[-1], filters, kernel)
        for channels in inputs:
            shapes += _dense(channels, filters, 1)
        inputs.append(filters)
    shapes += _dense(inputs[-1], 896, 29) + _dense(896, 1024, 1)
    return shapes + _decoder(1024)


def many_small() -> Shapes:
    """1.3 million parameters in 4000 tensors: what overhead per tensor costs."""
    return [(128,), (512,)] * 2000


def one_large() -> Shapes:
    """64 million parameters in one tensor: what memory bandwidth allows."""
    return [(8000, 8000)]


MODELS: dict[str, Callable[[], Shapes]] = {
    model.__name__: model for model in (quartznet_15x5, jasper_10x5dr, many_small, one_large)
}


def _dense(channels: int, filters: int, kernel: int) -> Shapes:
    return [(filters, channels, kernel), (filters,), (filters,)]


def _separable(channels: int, filters: int, kernel: int) -> Shapes:
    return [(channels, 1, kernel), (filters, channels, 1), (filters,), (filters,)]


def _decoder(channels: int) -> Shapes:
    return [(LABELS, channels, 1), (LABELS,)]
