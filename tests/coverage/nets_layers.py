"""Nets by hand about operators: layers torchvision has little of, tensor surgery, in-place work, interpolation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.group = nn.GroupNorm(3, 6)
        self.plain_group = nn.GroupNorm(2, 6, affine=False)
        self.instance = nn.InstanceNorm2d(6)
        self.affine = nn.InstanceNorm2d(6, affine=True)
        self.running = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.batch = nn.BatchNorm2d(6, affine=False)
        self.cumulative = nn.BatchNorm2d(6, momentum=None)
        self.untracked = nn.BatchNorm2d(6, track_running_stats=False)
        self.local = nn.LocalResponseNorm(3)
        self.rms = nn.RMSNorm(6)
        self.layer = nn.LayerNorm([6, 8, 10], bias=False)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.running(self.affine(self.instance(self.plain_group(self.group(self.conv(x))))))
        y = self.layer(self.local(self.untracked(self.cumulative(self.batch(y)))))
        return self.head(self.rms(F.normalize(y, dim=1).mean([2, 3])))


class Paddings(nn.Module):
    def __init__(self):
        super().__init__()
        modes = ("zeros", "reflect", "replicate", "circular")
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode) for mode in modes])
        self.same = nn.Conv2d(3, 3, (3, 2), padding="same", dilation=2)
        self.reflect = nn.Sequential(
            nn.ReflectionPad2d((1, 0, 2, 1)), nn.ReplicationPad2d(1), nn.ZeroPad2d((0, -1, 0, 0))
        )
        self.constant = nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.CircularPad2d(1))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(x)
        x = self.constant(self.reflect(self.same(x)))
        x = F.pad(x, [1, 1, 0, 0], mode="reflect") + F.pad(x, [1, 1], value=2.0)
        return self.head(x.mean([2, 3]))


class Upscaling(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 3, stride=2, padding=1, output_padding=1, groups=1)
        self.sized = nn.ConvTranspose2d(3, 8, 2, stride=2, bias=False)
        self.shuffle = nn.PixelShuffle(2)
        self.unshuffle = nn.PixelUnshuffle(2)
        self.resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.nearest = nn.UpsamplingNearest2d(scale_factor=2)
        self.channels = nn.ChannelShuffle(2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x) + self.sized(x, output_size=[x.size(2) * 2, x.size(3) * 2])
        y = self.channels(y) + self.unshuffle(self.shuffle(y))
        y = self.nearest(y[:, :, ::2, ::2]) + self.resize(y[:, :, ::2, ::2])
        for mode in ("nearest", "area", "nearest-exact"):
            y = y + F.interpolate(y, size=x.shape[2:], mode=mode).mean()
        y = y + F.interpolate(
            F.interpolate(y, scale_factor=0.5, mode="bicubic", align_corners=False), size=y.shape[-2:]
        )
        y = F.interpolate(y, scale_factor=(1.5, 1.0), mode="bilinear", antialias=True)
        return self.head(y.mean([2, 3]))


class OneAndThree(nn.Module):
    """Layers in one and in three dimensions."""

    def __init__(self):
        super().__init__()
        self.line = nn.Sequential(
            nn.Conv1d(3, 6, 3),
            nn.BatchNorm1d(6),
            nn.PReLU(6),
            nn.MaxPool1d(2),
            nn.ConvTranspose1d(6, 4, 2),
            nn.AvgPool1d(2),
        )
        self.volume = nn.Sequential(
            nn.Conv3d(3, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            nn.MaxPool3d((1, 2, 2)),
            nn.ConvTranspose3d(4, 4, 2),
            nn.Dropout3d(0.2),
            nn.AdaptiveAvgPool3d(2),
        )
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        flat = F.adaptive_avg_pool1d(self.line(x.flatten(2)), 1).squeeze(-1)
        deep = self.volume(x.unsqueeze(2).repeat(1, 1, 3, 1, 1)).mean([2, 3, 4])
        return self.head(flat + deep)


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.max = nn.MaxPool2d(2, return_indices=True)
        self.adaptive = nn.AdaptiveMaxPool2d((2, 3))
        self.average = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.fractional = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        small, where = self.max(y)
        y = y + small.mean() + where.float().mean() / 100
        y = self.adaptive(y).mean() + self.average(y)
        return self.head(torch.flatten(self.fractional(y), 1))


class Activations(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.chain = nn.Sequential(
            *(
                nn.ELU(),
                nn.SELU(),
                nn.CELU(0.5),
                nn.LeakyReLU(0.1, inplace=True),
                nn.PReLU(),
                nn.Softplus(),
                nn.Softsign(),
            ),
            *(
                nn.Tanhshrink(),
                nn.Hardtanh(-2.0, 2.0),
                nn.Hardshrink(0.01),
                nn.Softshrink(0.01),
                nn.LogSigmoid(),
                nn.Mish(),
            ),
            *(
                nn.GELU("tanh"),
                nn.Hardswish(),
                nn.Hardsigmoid(),
                nn.SiLU(inplace=True),
                nn.ReLU6(),
                nn.Threshold(0.01, 0.1),
            ),
            *(nn.RReLU(), nn.Softmin(1), nn.Sigmoid(), nn.Softmax2d(), nn.LogSoftmax(1), nn.Tanh(), nn.Identity()),
        )
        self.glu = nn.GLU(1)
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.Unflatten(1, (2, 3)), nn.Flatten(1))
        self.head(torch.rand(1, 2, 8, 10))

    def forward(self, x: Tensor) -> Tensor:
        y = self.glu(self.chain(self.conv(x)))
        return self.head(F.relu(y, inplace=True) + F.logsigmoid(y) + F.softplus(y) + F.relu_(y.clone()))


class Dropouts(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.drops = nn.Sequential(
            nn.Dropout2d(0.2), nn.Dropout(0.1), nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.1)
        )
        self.line = nn.Dropout1d(0.2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drops(self.conv(x))
        y = F.dropout2d(y, 0.1, self.training) + F.alpha_dropout(y, 0.1, self.training)
        return self.head(self.line(y.flatten(2)).mean(2))


class Surgery(nn.Module):
    """Slices, index assignments, gathers, scatters and masks."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.register_buffer("order", torch.tensor([2, 0, 1, 5, 4, 3]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).clone()
        y[:, 0] = 0.5
        y[:, 1, ::2] = y[:, 2, ::2] * 2
        y[..., -1] += 1
        y[y > 2] = 0.0
        y[:, self.order] = y.flip(1)
        y = y[:, self.order, 1:-1, None, :].squeeze(3)
        rows = y.flatten(2)
        top, where = rows.topk(3, dim=2)
        gathered = rows.gather(2, where) + top
        summed = torch.zeros_like(rows).scatter_add(2, where, gathered)
        summed = summed.index_add(1, self.order, rows).index_select(1, self.order)
        summed = summed.masked_fill(rows.abs() < 0.1, 0).where(rows > 0, rows.sort(dim=2, descending=True)[0])
        ones = F.one_hot(rows.argmax(2) % 6, 6).to(rows.dtype)
        rolled = torch.roll(summed, 2, 2).narrow(2, 0, 6) @ ones
        stacked = torch.stack([rolled, ones], 1).movedim(1, -1).sum(-1)
        return self.head(stacked.tril().sum(2) + torch.cumsum(rows, 2)[:, :, -1])


class Products(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 3, 5))
        self.bilinear = nn.Bilinear(5, 5, 4)
        self.cosine = nn.CosineSimilarity(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        columns = x.mean(2)
        y = torch.einsum("ncw,kcd->nkwd", columns, self.weight).mean(2)
        z = torch.baddbmm(y, y, y.transpose(1, 2) @ y, beta=0.5, alpha=2)
        distance = torch.cdist(y, z) + (y[:, :, None] - z[:, None]).norm(dim=-1)
        d = torch.tensordot(y, self.weight[0], dims=[[2], [1]]).sum(2) + torch.addmm(
            y[:, :, 0], y[:, :, 1], z[0, :4, :4]
        )
        answer = self.bilinear(y[:, 0], z[:, 1]) + distance.mean(2) + torch.outer(d[:, 0], d[0]).sum(1, keepdim=True)
        return answer + self.cosine(y, z).mean(1, keepdim=True) + F.pairwise_distance(y[:, 0], z[:, 0])[:, None]


class Patches(nn.Module):
    """Unfold and fold, patches by reshaping, windows rolled and turned back."""

    def __init__(self):
        super().__init__()
        self.unfold = nn.Unfold(2, stride=2)
        self.fold = nn.Fold((8, 10), 2, stride=2)
        self.mix = nn.Linear(12, 12)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = self.fold(self.mix(self.unfold(x).transpose(1, 2)).transpose(1, 2))
        windows = y.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        y = windows.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        y = y + y.unfold(2, 4, 4).mean(-1).repeat_interleave(4, dim=2)
        return self.head(torch.roll(y, (1, -1), (2, 3)).flatten(2).mean(2))


class SpatialTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.locate = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.locate(x).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.size(0), x.size(1), 6, 6], align_corners=False)
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, 6), torch.arange(6) / 5.0, indexing="ij")
        grid = grid + torch.stack([xs, ys], -1) * 0.1
        return self.head(F.grid_sample(x, grid, align_corners=False, padding_mode="border").mean([2, 3]))


class Spectral(nn.Module):
    """A global filter: multiplication in the frequency domain."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.rand(3, 8, 6, 2))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        frequencies = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        y = torch.fft.irfft2(frequencies, s=[8, 10], norm="ortho") + torch.fft.fft(x).real
        return self.head(y.mean([2, 3]))


class Reparametrized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(3, 6, 3))
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).mean([2, 3]))


class Parametrized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
        self.linear = parametrizations.spectral_norm(nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).mean([2, 3]))


class Standardised(nn.Conv2d):
    """A subclass of a layer: weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        std = self.weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5
        return F.conv2d(x, (self.weight - mean) / std, self.bias, self.stride, self.padding, self.dilation, self.groups)


class OwnNorm(nn.Module):
    """Batch-norm as a function on buffers of its own, layer-norm by hand, a mean and a variance."""

    def __init__(self):
        super().__init__()
        self.conv = Standardised(3, 6, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(self.conv(x), self.mean, self.var, self.scale, None, self.training, 0.1, 1e-5)
        y = F.instance_norm(y) + F.group_norm(y, 2)
        u = y.mean(1, keepdim=True)
        s = (y - u).pow(2).mean(1, keepdim=True)
        y = (y - u) / torch.sqrt(s + 1e-6) + torch.var_mean(y, dim=1, keepdim=True)[0]
        return self.head(F.layer_norm(y, y.shape[1:]).mean([2, 3]))


class Mathematics(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = (
            torch.erf(y)
            + torch.exp(-y.abs())
            + torch.log1p(y.square())
            + torch.atan2(y, y + 3)
            + torch.rsqrt(y * y + 1)
        )
        y = y + torch.lerp(y, y.sin(), 0.3) + torch.addcmul(y, y, y, value=0.1) + torch.clamp(y, min=-1) ** 2
        y = (
            y
            + torch.logsumexp(y, 1, keepdim=True)
            + y.softmax(1)
            + torch.sign(y) * y.floor().remainder(2)
            + (2 - y) / 3
        )
        y = torch.nan_to_num(y / y.amax(dim=(2, 3), keepdim=True)) + y.std(dim=1, keepdim=True) + y.median() + torch.pi
        y = (
            torch.maximum(y, -y)
            + torch.minimum(y, y * 2)
            + (y.isnan() | (y > 3)).float()
            + y.trunc()
            + 1 / (y.abs() + 1)
        )
        total, best = y.max(dim=2)
        return self.head(
            total.mean(2) + best.float().mean(2) + y.prod(dim=3).mean(2).tanh() + torch.arctan(y).mean((2, 3))
        )


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x)) * 1.0
        y += 1
        y *= 0.5
        y.sub_(0.1).div_(2)
        y.clamp_(0, 3)
        z = y.clone().zero_().fill_(0.5).copy_(y)
        z.masked_fill_(z > 1, 0.0)
        z[:, 0].add_(y[:, 1])
        z.unsqueeze_(0).squeeze_(0)
        return self.head(F.dropout(F.hardswish(z.mean([2, 3])), 0.2, self.training, inplace=True))


class Ordered(nn.Module):
    """Counting, looking up, bucketing: integer tensors among the floats."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.register_buffer("edges", torch.linspace(-2, 2, 8))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        buckets = torch.bucketize(x.mean(1), self.edges)
        y = self.table(buckets).mean((1, 2))
        where = torch.nonzero(y[0] > -9).squeeze(1)
        y = y[:, where] + torch.arange(4, device=x.device, dtype=x.dtype)
        y = y + torch.eye(4)[buckets[:, 0, 0] % 4] + torch.full((4,), 0.1) + torch.ones(4).cumsum(0)
        return self.head(y * int(torch.unique(buckets).numel() > 0))
