"""What known convolutional networks do in one call, made from their published geometry alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qeff_engine.simulated_sdk import operations
from qeff_engine.simulated_sdk.operations import Operation, Work


class Net:
    """Operators of a network on square images, one after another.

    Attributes:
        operations: so far.
        channels, side: of the image that the next operator gets.
    """

    def __init__(self, *, batch: int, precision: str, channels: int = 3, side: int = 224) -> None:
        self.operations: list[Operation] = []
        self.channels = channels
        self.side = side
        self._batch = batch
        self._precision = precision

    def conv(self, channels: int, *, kernel: int, stride: int = 1, groups: int = 1, padding: int | None = None) -> None:
        """A convolution with "same" padding unless told."""
        before = self.side
        self._shrink(kernel=kernel, stride=stride, padding=kernel // 2 if padding is None else padding)
        self.operations.append(
            operations.conv(
                samples=self._batch,
                in_channels=self.channels,
                out_channels=channels,
                kernel=kernel * kernel,
                in_pixels=before * before,
                out_pixels=self.side * self.side,
                groups=groups,
                precision=self._precision,
            )
        )
        self.channels = channels

    def pool(self, kernel: int, *, stride: int, padding: int = 0) -> None:
        """Maximum or average of windows."""
        self._shrink(kernel=kernel, stride=stride, padding=padding)
        elements = self._batch * self.channels * self.side * self.side
        self.operations.append(
            operations.vector(
                "pooling", samples=self._batch, elements=elements, taps=kernel * kernel, precision=self._precision
            )
        )

    def scale(self) -> None:
        """A batch normalization that no convolution before it can take in."""
        elements = self._batch * self.channels * self.side * self.side
        self.operations.append(
            operations.vector("scaling", samples=self._batch, elements=elements, precision=self._precision)
        )

    def dense(self, columns: int) -> None:
        """A fully connected layer on all pixels and channels."""
        inner = self.channels * self.side * self.side
        self.operations.append(
            operations.matmul(
                rows=self._batch, inner=inner, columns=columns, samples=self._batch, precision=self._precision
            )
        )
        self.channels, self.side = columns, 1

    def _shrink(self, *, kernel: int, stride: int, padding: int) -> None:
        self.side = (self.side + 2 * padding - kernel) // stride + 1


def _residual(net: Net, *, blocks: Sequence[int], bottleneck: bool, width: int = 64, groups: int = 1) -> None:
    """A ResNet; ``width`` is of the first stage's inner convolutions, ``groups`` are those of the 3 x 3 ones."""
    net.conv(64, kernel=7, stride=2)
    net.pool(3, stride=2, padding=1)
    for stage, count in enumerate(blocks):
        outer = (256 if bottleneck else 64) << stage
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            before = net.channels, net.side
            if bottleneck:
                net.conv(width << stage, kernel=1)
                net.conv(width << stage, kernel=3, stride=stride, groups=groups)
                net.conv(outer, kernel=1)
            else:
                net.conv(outer, kernel=3, stride=stride)
                net.conv(outer, kernel=3)
            if before != (net.channels, net.side):
                after = net.channels, net.side
                net.channels, net.side = before
                net.conv(outer, kernel=1, stride=stride)
                net.channels, net.side = after
    net.pool(7, stride=1)
    net.dense(1000)


def _inverted(net: Net, *, blocks: Sequence[tuple[int, int, int, int, int]], stem: int, last: int) -> None:
    """A MobileNet; a block is expansion, channels, repeats, first stride, kernel."""
    net.conv(stem, kernel=3, stride=2)
    for expansion, channels, repeats, first_stride, kernel in blocks:
        for number in range(repeats):
            inner = net.channels * expansion
            if expansion > 1:
                net.conv(inner, kernel=1)
            net.conv(inner, kernel=kernel, stride=first_stride if number == 0 else 1, groups=inner)
            net.conv(channels, kernel=1)
    net.conv(last, kernel=1)
    net.pool(7, stride=1)
    net.dense(1000)


def _alexnet(net: Net) -> None:
    net.conv(64, kernel=11, stride=4, padding=2)
    net.pool(3, stride=2)
    net.conv(192, kernel=5)
    net.pool(3, stride=2)
    net.conv(384, kernel=3)
    net.conv(256, kernel=3)
    net.conv(256, kernel=3)
    net.pool(3, stride=2)
    net.dense(4096)
    net.dense(4096)
    net.dense(1000)


def _vgg(net: Net, *, repeats: Sequence[int]) -> None:
    for channels, count in zip((64, 128, 256, 512, 512), repeats, strict=True):
        for _ in range(count):
            net.conv(channels, kernel=3)
        net.pool(2, stride=2)
    net.dense(4096)
    net.dense(4096)
    net.dense(1000)


def _squeezenet(net: Net, *, stem: tuple[int, int], pools: Sequence[int]) -> None:
    """A SqueezeNet; pooling comes before the fire modules with these numbers."""
    net.conv(stem[0], kernel=stem[1], stride=2, padding=0)
    for number, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        if number in pools:
            net.pool(3, stride=2)
        net.conv(squeeze, kernel=1)
        net.conv(4 * squeeze, kernel=1)
        net.channels = squeeze
        net.conv(4 * squeeze, kernel=3)
        net.channels = 8 * squeeze
    net.conv(1000, kernel=1)
    net.pool(net.side, stride=1)


def _densenet(net: Net, *, blocks: Sequence[int], growth: int = 32, stem: int = 64) -> None:
    net.conv(stem, kernel=7, stride=2)
    net.pool(3, stride=2, padding=1)
    for stage, count in enumerate(blocks):
        for _ in range(count):
            joined = net.channels + growth
            net.scale()
            net.conv(4 * growth, kernel=1)
            net.conv(growth, kernel=3)
            net.channels = joined
        net.scale()
        if stage < len(blocks) - 1:
            net.conv(net.channels // 2, kernel=1)
            net.pool(2, stride=2)
    net.pool(7, stride=1)
    net.dense(1000)


_MOBILENET_V2 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
_MNASNET = (
    (1, 16, 1, 1, 3),
    (3, 24, 3, 2, 3),
    (3, 40, 3, 2, 5),
    (6, 80, 3, 2, 5),
    (6, 96, 2, 1, 3),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
NETS: dict[str, Callable[[Net], None]] = {
    "resnet-18": lambda net: _residual(net, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet-34": lambda net: _residual(net, blocks=(3, 4, 6, 3), bottleneck=False),
    "resnet-50": lambda net: _residual(net, blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet-101": lambda net: _residual(net, blocks=(3, 4, 23, 3), bottleneck=True),
    "resnet-152": lambda net: _residual(net, blocks=(3, 8, 36, 3), bottleneck=True),
    "wide-resnet-50-2": lambda net: _residual(net, blocks=(3, 4, 6, 3), bottleneck=True, width=128),
    "wide-resnet-101-2": lambda net: _residual(net, blocks=(3, 4, 23, 3), bottleneck=True, width=128),
    "resnext-50-32x4d": lambda net: _residual(net, blocks=(3, 4, 6, 3), bottleneck=True, width=128, groups=32),
    "resnext-101-32x8d": lambda net: _residual(net, blocks=(3, 4, 23, 3), bottleneck=True, width=256, groups=32),
    "resnext-101-64x4d": lambda net: _residual(net, blocks=(3, 4, 23, 3), bottleneck=True, width=256, groups=64),
    "mobilenet-v2": lambda net: _inverted(net, blocks=_MOBILENET_V2, stem=32, last=1280),
    "mnasnet-1.0": lambda net: _inverted(net, blocks=_MNASNET, stem=32, last=1280),
    "alexnet": _alexnet,
    "vgg-11": lambda net: _vgg(net, repeats=(1, 1, 2, 2, 2)),
    "vgg-13": lambda net: _vgg(net, repeats=(2, 2, 2, 2, 2)),
    "vgg-16": lambda net: _vgg(net, repeats=(2, 2, 3, 3, 3)),
    "vgg-19": lambda net: _vgg(net, repeats=(2, 2, 4, 4, 4)),
    "squeezenet-1.0": lambda net: _squeezenet(net, stem=(96, 7), pools=(0, 3, 7)),
    "squeezenet-1.1": lambda net: _squeezenet(net, stem=(64, 3), pools=(0, 2, 4)),
    "densenet-121": lambda net: _densenet(net, blocks=(6, 12, 24, 16)),
    "densenet-161": lambda net: _densenet(net, blocks=(6, 12, 36, 24), growth=48, stem=96),
    "densenet-169": lambda net: _densenet(net, blocks=(6, 12, 32, 32)),
    "densenet-201": lambda net: _densenet(net, blocks=(6, 12, 48, 32)),
}


def convolutional_work(name: str, *, batch: int, precision: str = "fp16") -> Work:
    """A call of the network ``name`` of :data:`NETS` on ``batch`` images of 224 x 224, which are FP32 or INT8."""
    net = Net(batch=batch, precision=precision)
    NETS[name](net)
    image_bytes = 3 * 224 * 224 * (1 if precision == "int8" else 4)
    return Work(operations=operations.merged(net.operations), io_bytes=batch * (image_bytes + 4 * 1000))
