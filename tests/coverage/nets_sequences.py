"""Nets by hand over sequences: recurrent layers, attention, transformers, embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class RecurrentHead(nn.Module):
    """Rows of an image read by a recurrent network."""

    def __init__(self, kind: type[nn.RNNBase], **settings):
        super().__init__()
        self.rnn = kind(10, 7, batch_first=True, **settings)
        directions = 2 if self.rnn.bidirectional else 1
        self.head = nn.Linear((self.rnn.proj_size or 7) * directions, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.mean(1))[0][:, -1])


class CarriedState(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(10, 7, num_layers=2)
        self.gru = nn.GRU(7, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(x.mean(1).transpose(0, 1), state)
        _, hidden = self.gru(y, torch.zeros(1, x.size(0), 5, dtype=x.dtype))
        return self.head(hidden[0]), state


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTMCell(10, 6)
        self.gru = nn.GRUCell(6, 5)
        self.rnn = nn.RNNCell(5, 4, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(1)
        h = torch.zeros(x.size(0), 6, dtype=x.dtype)
        c = torch.zeros_like(h)
        g = torch.zeros(x.size(0), 5, dtype=x.dtype)
        out = torch.zeros(x.size(0), 4, dtype=x.dtype)
        for t in range(rows.size(1)):
            h, c = self.lstm(rows[:, t], (h, c))
            g = self.gru(h, g)
            out = self.rnn(g, out)
        return out


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(10, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full([x.size(0)], 5, dtype=torch.long)
        packed = pack_padded_sequence(x.mean(1), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.head(y.mean(1))


class Text(nn.Module):
    def __init__(self, norm_first: bool = False):
        super().__init__()
        self.embed = nn.Embedding(30, 8, padding_idx=0)
        self.positions = nn.Parameter(torch.rand(1, 12, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, words: Tensor) -> Tensor:
        y = self.embed(words) + self.positions[:, : words.size(1)]
        return self.head(self.encoder(y, src_key_padding_mask=words == 0).mean(1))


class Encoder(nn.Module):
    """`nn.TransformerEncoder` over the rows of an image, in its variants."""

    def __init__(self, *, batch_first: bool = True, final_norm: bool = False, nested: bool = True, **settings):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.2, batch_first=batch_first, **settings)
        norm = nn.LayerNorm(12) if final_norm else None
        self.encoder = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=nested)
        self.head = nn.Linear(12, 4)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(1) if self.batch_first else x.mean(1).transpose(0, 1)
        return self.head(self.encoder(rows).mean(1 if self.batch_first else 0))


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.triu(torch.full((x.size(2), x.size(2)), float("-inf"), dtype=x.dtype), diagonal=1)
        return self.head(self.layer(x.mean(1), src_mask=mask)[:, -1])


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.rand(3, 12))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 3, 20, batch_first=True), 2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(x.size(0), -1, -1)
        return self.head(self.decoder(queries, x.mean(1)).mean(1))


class WholeTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(12, 3, 1, 1, 20, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(1)
        return self.head(self.transformer(rows, rows[:, :3]).mean(1))


class Attention(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attend = nn.MultiheadAttention(12, 3, dropout=0.1, **settings)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.mean(1)
        y, weights = self.attend(rows, rows, rows)
        return self.head(self.norm(rows + y).mean(1)), torch.jit._unwrap_optional(weights)


class OwnAttention(nn.Module):
    """Attention by hand, causal, with a cached mask, einsum and a head dimension."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 36, bias=False)
        self.out = nn.Linear(12, 4)
        self.register_buffer("mask", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(1)
        b, t, c = rows.shape
        q, k, v = self.qkv(rows).split(12, dim=2)
        q, k, v = [part.view(b, t, 3, c // 3).transpose(1, 2) for part in (q, k, v)]
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * (c // 3) ** -0.5
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        y = y + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(b, t, c).mean(1))
