"""The same decoder in PyTorch eager, to compare the worker's tokens/s with. Used only where a Python with torch exists.

    python3 benches/peer/train.py --preset demo --threads 1

Model, batch, optimizer and counting are those of `benches/src/tokens.rs`: fp32 and bf16 autocast, AdamW
(fused and not) with clipping, median over steps of 2048 tokens.
"""

import argparse
import math
import statistics
import time

import torch
import torch.nn.functional as F

# hidden, intermediate, layers, heads, key-value heads: model::Preset
PRESETS = {
    "tiny": (96, 264, 2, 3, 3),
    "demo": (128, 384, 4, 4, 4),
    "25m": (512, 1376, 8, 8, 8),
    "100m": (768, 2560, 13, 12, 4),
}
VOCABULARY, SEQUENCES, TOKENS, STEPS, WARMUP = 256, 8, 256, 20, 3


class Layer(torch.nn.Module):
    def __init__(self, hidden, intermediate, heads, shared, layers):
        super().__init__()
        self.heads, self.shared, self.head = heads, shared, hidden // heads
        matrix = lambda out, inner, scale=1.0: torch.nn.Parameter(torch.randn(out, inner) * 0.02 * scale)
        residual = 1 / math.sqrt(2 * layers)
        self.norm1 = torch.nn.Parameter(torch.ones(hidden))
        self.qkv = matrix((heads + 2 * shared) * self.head, hidden)
        self.out = matrix(hidden, heads * self.head, residual)
        self.norm2 = torch.nn.Parameter(torch.ones(hidden))
        self.gate_up = matrix(2 * intermediate, hidden)
        self.down = matrix(hidden, intermediate, residual)

    def rotate(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos.to(x.dtype) + torch.cat((-b, a), -1) * sin.to(x.dtype)

    def forward(self, x, cos, sin):
        batch, length, hidden = x.shape
        y = F.linear(F.rms_norm(x, (hidden,), self.norm1, 1e-5), self.qkv)
        y = y.view(batch, length, self.heads + 2 * self.shared, self.head).transpose(1, 2)
        q, k, v = y.split((self.heads, self.shared, self.shared), 1)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.shared)
        x = x + F.linear(y.transpose(1, 2).reshape(batch, length, -1), self.out)
        gate, up = F.linear(F.rms_norm(x, (hidden,), self.norm2, 1e-5), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Decoder(torch.nn.Module):
    def __init__(self, hidden, intermediate, layers, heads, shared):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.randn(VOCABULARY, hidden) * 0.02)
        self.layers = torch.nn.ModuleList(Layer(hidden, intermediate, heads, shared, layers) for _ in range(layers))
        self.norm = torch.nn.Parameter(torch.ones(hidden))
        head = hidden // heads
        angle = torch.arange(TOKENS)[:, None] * 10000.0 ** (-torch.arange(0, head, 2) / head)[None, :]
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens):
        x = F.embedding(tokens, self.embedding)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, 1e-5), self.embedding)


def measure(preset, bf16, fused):
    torch.manual_seed(1)
    model = Decoder(*PRESETS[preset])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), 1e-8, 0.1, fused=fused)
    index = torch.arange(SEQUENCES * (TOKENS + 1))
    tokens = ((index * index * 31 + index * 17) % 251).view(SEQUENCES, TOKENS + 1)
    seconds = []
    for step in range(WARMUP + STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        if step >= WARMUP:
            seconds.append(time.perf_counter() - start)
    return SEQUENCES * TOKENS / statistics.median(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="demo", choices=PRESETS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast as well")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for bf16 in (False, True) if given.bf16 else (False,):
        for fused in (False, True):
            rate = measure(given.preset, bf16, fused)
            print(f"{given.preset} cpu, {given.threads} threads, {'bf16' if bf16 else 'fp32'}, "
                  f"{'fused' if fused else 'default'} AdamW: {rate:.0f} tokens/s, torch {torch.__version__}")
