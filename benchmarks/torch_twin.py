"""The text-to-image transformer in PyTorch, to time the JAX one against: training steps, and sampling by diffusers.

    python -m benchmarks.torch_twin --config configs/diffusion.py:demo
    python -m benchmarks.torch_twin --config configs/diffusion.py:demo --compare sampling

All sides do the same work of one recipe in turns, in one process and on the same batch, since machines differ and
share. Prints one JSON line; `cpu_s` is processor time, all threads together, which shows more than the clock where
others compute too. On a CPU run it under `taskset -c 0` to give each side one thread: torch's threads wait for each
other by spinning, and lose much on busy cores. A bfloat16 recipe runs in torch under autocast. Needs torch, a C++
compiler for torch.compile, and diffusers to compare sampling.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports], an extra
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from absl import app, flags
from diffusers import FlowMatchEulerDiscreteScheduler  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from zoo import config as configs
from zoo.conditions import END
from zoo.errors import UserError, exit_on_user_error
from zoo.families import get_dtype
from zoo.methods.diffusion import Diffusion, SampleOptions
from zoo.nets.conditioning import Conditioned, TextTransformer
from zoo.nets.layers import rotary_table, sincos_table
from zoo.runs.data import Data
from zoo.runs.dependencies import Dependencies
from zoo.runs.recipe import Recipe
from zoo.training import cost, parallel
from zoo.training.lengths import Loop
from zoo.training.optim import Optimizer

EPSILON = 1e-6  # of the norms
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Attention(nn.Module):
    """Attention with normalised queries and keys, over x and a context in one softmax."""

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.scale = nn.Parameter(torch.ones(2, 1, width // heads))  # of queries and of keys
        self.out = nn.Linear(width, width, bias=False)
        if context_width:
            self.context = nn.Linear(context_width, 2 * width, bias=False)
            self.context_norm = nn.RMSNorm(width // heads, eps=EPSILON)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor | None = None, angles=None) -> Tensor:
        """x: (B, N, D); mask: bool (B, 1, 1, keys); context: (B, M, D); angles: cos and sin of (N, 1, 1, d / 2)."""
        qk, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=2)  # (B, N, 2 and 1, heads, d)
        qk = F.rms_norm(qk, qk.shape[-1:], eps=EPSILON) * self.scale
        q, k = (qk if angles is None else rotate(qk, *angles)).unbind(2)
        v = v.squeeze(2)
        if context is not None:
            context_k, context_v = self.context(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
            k, v = torch.cat((k, self.context_norm(context_k)), 1), torch.cat((v, context_v), 1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel pairs of x, (B, N, heads, d), by angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class SwiGLU(nn.Module):
    """Gated feed-forward (2002.05202)."""

    def __init__(self, width: int):
        super().__init__()
        hidden = int(width * 4 * 2 / 3) // 8 * 8
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, D) -> (B, N, D)."""
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class TextLayer(nn.Module):
    """Attention and feed-forward of the text encoder."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width, eps=EPSILON), Attention(width, heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=EPSILON), SwiGLU(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, N, D); mask: bool (B, 1, 1, N) -> (B, N, D)."""
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class Block(nn.Module):
    """Attention and feed-forward, each behind an adaLN gate."""

    def __init__(self, width: int, heads: int, text_width: int):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention, self.mlp = Attention(width, heads, text_width), SwiGLU(width)

    def forward(self, x: Tensor, condition: Tensor, text: Tensor, mask: Tensor, angles) -> Tensor:
        """condition: (B, D), already through the activation."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.attention(modulate(x, shift_a, scale_a), mask, text, angles)
        return x + gate_m * self.mlp(modulate(x, shift_m, scale_m))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalises x, (B, N, D), then scales and shifts it by (B, 1, D)."""
    return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=EPSILON), 1 + scale)


class Transformer(nn.Module):
    """The network with its conditioner, with text="joint" and positions="rotary", for square images of `size`."""

    def __init__(self, conditioned: Conditioned, size: int, text_length: int, channels: int = 3):
        super().__init__()
        net, conditioner = conditioned.network, cast(TextTransformer, conditioned.conditioner)
        if (net.text, net.positions) != ("joint", "rotary"):
            raise UserError("the twin has only text='joint' with positions='rotary'")
        width, heads, text_width, self.patch_size = net.width, net.heads, conditioner.width, net.patch_size
        patch, side = net.patch_size**2 * channels, size // net.patch_size
        self.embedding = nn.Embedding(conditioner.vocab_size, text_width)
        self.text_positions = nn.Parameter(torch.zeros(text_length, text_width))
        self.text_layers = nn.ModuleList(TextLayer(text_width, conditioner.heads) for _ in range(conditioner.depth))
        self.text_norm = nn.RMSNorm(text_width, eps=EPSILON)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.caption = nn.Linear(text_width, width)
        self.embed = nn.Linear(patch, width)
        self.layers = nn.ModuleList(Block(width, heads, text_width) for _ in range(net.depth))
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, patch)
        angles = torch.tensor(rotary_table(side, side, width // heads))[:, None, None]
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())
        self.register_buffer("positions", torch.tensor(sincos_table(side, side, width)).float())
        self.register_buffer("frequencies", 1000.0 * 1e-4 ** (torch.arange(128) / 128))

    def forward(self, z: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """z: (B, T, H, W, C); t: (B,); ids: (B, L) -> like z."""
        text, present = self.encode(ids)
        angles = t[:, None] * self.frequencies
        pooled = (text * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        condition = self.time(torch.cat((angles.sin(), angles.cos()), -1)) + self.caption(pooled)

        batch, frames, height, width, channels = z.shape
        p = self.patch_size
        rows, columns = height // p, width // p
        z = z.reshape(batch * frames, rows, p, columns, p, channels).transpose(2, 3)
        x = self.embed(z.reshape(batch * frames, rows * columns, -1)) + self.positions
        if frames > 1:  # each frame attends to itself
            condition, text, present = (y.repeat_interleave(frames, 0) for y in (condition, text, present))
        mask = F.pad(present, (rows * columns, 0), value=True)[:, None, None]
        condition = F.silu(condition)
        for layer in self.layers:
            x = layer(x, condition, text, mask, (self.cos, self.sin))
        x = self.out(modulate(x, *self.modulation(condition)[:, None].chunk(2, dim=-1)))
        return x.reshape(-1, rows, columns, p, p, channels).transpose(2, 3).reshape(batch, frames, height, width, -1)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids: (B, L) -> their vectors (B, L, D), and which are no padding (B, L)."""
        present = ids != 0
        x = self.embedding(ids) + self.text_positions
        for layer in self.text_layers:
            x = layer(x, present[:, None, None])
        return self.text_norm(x), present

    @torch.no_grad()
    def load_flax(self, params) -> "Transformer":
        """Copies the parameters of the flax network, whose layers lie stacked on the leading axis."""
        text, params = params["conditioner"], params["network"]
        self.embedding.weight.copy_(tensor(text["embedding"]["embedding"]))
        self.text_positions.copy_(tensor(text["positions"]))
        for i, layer in enumerate(self.text_layers):
            own = unstack(text["layers"], i)
            layer.attention_norm.weight.copy_(tensor(own["attention_norm"]["scale"]))
            layer.mlp_norm.weight.copy_(tensor(own["mlp_norm"]["scale"]))
            load_attention(layer.attention, own["attention"])
            load_mlp(layer.mlp, own["mlp"])
        self.text_norm.weight.copy_(tensor(text["norm"]["scale"]))
        load_dense(self.time[0], params["time"]["Dense_0"])
        load_dense(self.time[2], params["time"]["Dense_1"])
        for name in ("caption", "embed", "modulation", "out"):
            load_dense(getattr(self, name), params[name])
        for i, block in enumerate(self.layers):
            own = unstack(params["layers"], i)
            load_dense(block.modulation, own["modulation"])
            load_attention(block.attention, own["attention"])
            load_mlp(block.mlp, own["mlp"])
        return self


def tensor(array) -> Tensor:
    """Returns an array of JAX or numpy as a tensor."""
    return torch.from_numpy(np.array(array))


def unstack(params, i: int):
    """Returns the parameters of layer i."""
    return jax.tree.map(lambda leaf: leaf[i], params)


def load_dense(layer: nn.Linear, *params) -> None:
    """Loads one dense layer, or several fused into one; kernels are (inputs, outputs...)."""
    inputs = layer.in_features
    layer.weight.copy_(torch.cat([tensor(p["kernel"]).reshape(inputs, -1) for p in params], dim=1).T)
    if layer.bias is not None:
        layer.bias.copy_(torch.cat([tensor(p["bias"]) for p in params]))


def load_attention(attention: Attention, params) -> None:
    """Loads attention, whose query, key and value are one dense layer in torch."""
    load_dense(attention.qkv, params["query"], params["key"], params["value"])
    load_dense(attention.out, params["out"])
    scales = [tensor(params[name]["scale"]) for name in ("query_norm", "key_norm")]
    attention.scale.copy_(torch.stack(scales)[:, None])
    if "context_key" in params:
        load_dense(attention.context, params["context_key"], params["context_value"])
        attention.context_norm.weight.copy_(tensor(params["context_key_norm"]["scale"]))


def load_mlp(mlp: SwiGLU, params) -> None:
    """Loads a feed-forward layer."""
    load_dense(mlp.up, params["up"])
    load_dense(mlp.down, params["down"])


class Trainer:
    """Training steps of rectified flow: AdamW behind clipping, and the averages of the recipe."""

    def __init__(self, model: Transformer, method: Diffusion, optimizer: Optimizer, total_steps: int, compiled=False):
        if (method.path, method.prediction, method.loss_space, method.time_distribution) != (
            "linear",
            "v",
            "v",
            "logit_normal",
        ):
            raise UserError("the twin has only rectified flow with logit-normal times")
        if method.time_min or method.time_shift != 1 or optimizer.weight_decay or optimizer.freeze:
            raise UserError("the twin has no time_min, time_shift, weight decay or freezing")
        self.model, self.method, self.clip_norm = model, method, optimizer.clip_norm
        self.params = list(model.parameters())
        self.adam = torch.optim.AdamW(self.params, betas=optimizer.betas, weight_decay=0.0, fused=True)
        self.loss = torch.compile(flow_loss) if compiled else flow_loss
        self.autocast = autocast(method.dtype)
        self.taken, steps = 0, jnp.arange(total_steps)
        self.rates = np.asarray(optimizer.schedule(total_steps)(steps)).tolist()
        self.averages = [
            ([p.detach().clone() for p in self.params], np.asarray(optimizer.ema_rate(half_life, steps)).tolist())
            for half_life in optimizer.ema_half_lives
        ]

    def step(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """pixels: uint8 (B, T, H, W, C); tokens: (B, L) -> the loss."""
        x = pixels.float() / 127.5 - 1.0
        t = torch.sigmoid(self.method.time_mean + self.method.time_std * torch.randn(len(x), device=x.device))
        empty = F.pad(tokens.new_tensor([END]), (0, tokens.shape[1] - 1))
        tokens = torch.where(torch.rand(len(x), 1, device=x.device) < self.method.caption_drop, empty, tokens)
        return self.learn(x, torch.randn_like(x), t, tokens)

    def learn(self, x: Tensor, eps: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """A step with given noise, times and captions."""
        self.adam.zero_grad()
        with self.autocast:
            loss = self.loss(self.model, x, eps, t, tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.clip_norm)
        now = min(self.taken, len(self.rates) - 1)
        self.adam.param_groups[0]["lr"] = self.rates[now]
        self.adam.step()
        for average, weights in self.averages:
            torch._foreach_lerp_(average, [p.detach() for p in self.params], weights[now])
        self.taken += 1
        return loss.detach()


def flow_loss(model: nn.Module, x: Tensor, eps: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
    """Returns the mean squared error of the velocity."""
    z = torch.lerp(x, eps, t[:, None, None, None, None])
    return F.mse_loss(model(z, t, tokens), eps - x)


def autocast(dtype) -> torch.autocast:
    """The context in which torch computes as a recipe of this dtype does; its parameters stay float32."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=jnp.dtype(dtype) == jnp.bfloat16)


def random_batch(recipe: Recipe, count: int) -> dict[str, Any]:
    """Noise and random captions, (count, B, ...)."""
    data, random = recipe.data, np.random.default_rng(0)
    tokens = random.integers(3, recipe.tokenizer.vocab_size, (count, data.batch_size, data.text_length))
    lengths = random.integers(1, data.text_length + 1, (count, data.batch_size, 1))
    return {
        "inputs": random.integers(0, 256, (count, data.batch_size, *data.shape), dtype=np.uint8),
        "cond": {"tokens": np.where(np.arange(data.text_length) < lengths, tokens, 0).astype(np.int32)},
    }


def jax_side(recipe: Recipe, loop: Loop, batch) -> Callable[[], None]:
    """A call takes `loop.steps_per_call` steps, as the training loop does."""
    devices = jax.local_device_count()
    state = parallel.replicate(recipe.create_state())
    split = jax.tree.map(lambda x: x.reshape(len(x), devices, -1, *x.shape[2:]).swapaxes(0, 1), batch)
    batch = next(parallel.prefetch(iter([split])))
    step = parallel.pmap(recipe.step(loop.steps, loop.accumulate, parallel.Devices()))

    def call():
        nonlocal state
        state, metrics = step(state, {}, batch)
        jax.block_until_ready((state, metrics))

    return call


def torch_side(recipe: Recipe, loop: Loop, batch, compiled: bool) -> Callable[[], None]:
    """A call takes as many steps as one of JAX."""
    trainer = Trainer(twin_of(recipe), cast(Diffusion, recipe.method), recipe.optimizers["model"], loop.steps, compiled)
    pixels, tokens = tensor(batch["inputs"]).to(DEVICE), tensor(batch["cond"]["tokens"]).long().to(DEVICE)

    def call():
        for part in zip(pixels, tokens, strict=True):
            trainer.step(*part)
        synchronize()

    return call


def twin_of(recipe: Recipe) -> Transformer:
    """The recipe's network, freshly drawn, in torch."""
    network = cast(Diffusion, recipe.method).network
    model = Transformer(network, recipe.data.size, recipe.data.text_length)
    return model.load_flax(recipe.create_state().params["model"]).to(DEVICE)


def synchronize() -> None:
    """Waits for what was started on the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def jax_sampling(recipe: Recipe, tokens: np.ndarray, options: SampleOptions) -> Callable[[], None]:
    """A call makes an image for each caption."""
    per_device = len(tokens) // jax.local_device_count()
    sampler = recipe.sampler(per_device, **dataclasses.asdict(options))
    params = parallel.place(recipe.create_state().params | {"frozen": {}})

    def call():
        sampler(params, {"tokens": tokens}, seed=0)

    return call


def torch_sampling(recipe: Recipe, tokens: np.ndarray, options: SampleOptions, compiled: bool) -> Callable[[], None]:
    """A call makes an image for each caption with the loop of a diffusers pipeline."""
    model = twin_of(recipe).eval()
    network = torch.compile(model) if compiled else model
    captions = tensor(tokens).long().to(DEVICE)

    def call():
        noise = torch.randn(len(captions), *recipe.data.shape, device=DEVICE)
        with autocast(recipe.config.dtype):
            images = diffusers_loop(network, noise, captions, options)
        (images * 127.5 + 127.5).clamp(0, 255).round().byte().cpu()

    return call


@torch.no_grad()
def diffusers_loop(network: nn.Module, z: Tensor, tokens: Tensor, options: SampleOptions) -> Tensor:
    """Euler steps by the scheduler of diffusers, both halves of the guidance in one batch, as its pipelines do."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=options.shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / options.steps, options.steps), device=z.device)
    empty = F.pad(tokens.new_tensor([END]), (0, tokens.shape[1] - 1)).expand_as(tokens)
    both = torch.cat([tokens, empty])
    for timestep in scheduler.timesteps:
        t = (timestep / scheduler.config.num_train_timesteps).expand(len(both))
        good, bad = network(torch.cat([z, z]), t, both).chunk(2)
        z = scheduler.step(good + options.guidance * (good - bad), timestep, z, return_dict=False)[0]
    return z


def in_turns(sides: dict[str, Callable[[], None]], rounds: int, calls: int) -> dict[str, np.ndarray]:
    """Seconds of a call of each side, by the clock and of processor time, after a warm-up: name -> (rounds, 2)."""
    taken = {name: [] for name in sides}
    for side in sides.values():
        side()
        side()  # jax compiles anew where the state that a call returned is laid out in another way than the first
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(0.3)  # until the other side's threads have stopped spinning
            began = time.perf_counter(), time.process_time()
            for _ in range(calls):
                side()
            ended = time.perf_counter(), time.process_time()
            taken[name].append(np.subtract(ended, began) / calls)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def torch_matmul_peak(dtype, seconds: float = 0.5) -> float:
    """As zoo.training.cost.matmul_peak."""
    size = 8192 if DEVICE.type == "cuda" else 1024
    a = torch.randn(size, size, device=DEVICE)
    best, end = math.inf, time.perf_counter() + seconds
    with autocast(dtype):
        a = torch.mm(a, torch.eye(size, device=DEVICE))  # in the dtype of autocast
        while time.perf_counter() < end:
            synchronize()
            began = time.perf_counter()
            torch.mm(a, a)
            synchronize()
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def compare_training(recipe: Recipe, loop: Loop, rounds: int, steps: int) -> dict:
    """The report on training steps."""
    batch = random_batch(recipe, loop.steps_per_call)
    dtype = get_dtype(recipe.config.dtype)
    peaks = {"jax": cost.matmul_peak(dtype), "torch": torch_matmul_peak(dtype)}
    sides = {
        "jax": jax_side(recipe, loop, batch),
        "torch_eager": torch_side(recipe, loop, batch, compiled=False),
        "torch_compiled": torch_side(recipe, loop, batch, compiled=True),
    }
    taken = in_turns(sides, rounds, calls=max(1, steps // loop.steps_per_call))
    seconds = {name: both / loop.steps_per_call for name, both in taken.items()}
    flops = recipe.step_flops(loop.accumulate)
    report: dict[str, Any] = {"steps": steps, "batch_size": recipe.data.batch_size, "flops_per_step": flops}
    report["matmul_peak_flops_per_s"] = peaks
    for name, both in seconds.items():
        report[name] = side_report(both, seconds["jax"]) | {"flops_per_s": flops / np.median(both[:, 0])}
        report[name] |= {f"share_of_{by}_peak": report[name]["flops_per_s"] / peak for by, peak in peaks.items()}
    return report


def compare_sampling(recipe: Recipe, rounds: int) -> dict:
    """The report on sampling: Euler steps with guidance, a batch of the recipe's size."""
    options = SampleOptions(steps=recipe.config.sample.steps, sampler="euler", guidance=1.5)
    tokens = random_batch(recipe, 1)["cond"]["tokens"][0]
    sides = {
        "jax": jax_sampling(recipe, tokens, options),
        "diffusers_eager": torch_sampling(recipe, tokens, options, compiled=False),
        "diffusers_compiled": torch_sampling(recipe, tokens, options, compiled=True),
    }
    taken = in_turns(sides, rounds, calls=1)
    report = {"images": len(tokens), "sampler": dataclasses.asdict(options)}
    for name, both in taken.items():
        report[name] = side_report(both, taken["jax"]) | {"images_per_s": len(tokens) / np.median(both[:, 0])}
    return report


def side_report(seconds: np.ndarray, of_jax: np.ndarray) -> dict:
    """Medians of a side, and how many times the seconds of JAX it took: least, median and most of the rounds."""
    clock, cpu = np.median(seconds, axis=0).tolist()
    ratios = seconds / of_jax
    return {
        "seconds": clock,
        "cpu_s": cpu,
        "times_jax": [float(f(ratios[:, 0])) for f in (np.min, np.median, np.max)],
        "times_jax_cpu": [float(f(ratios[:, 1])) for f in (np.min, np.median, np.max)],
    }


def numbers_only(data: Data) -> Any:
    """In place of a tokenizer: the captions are numbers already."""
    encode = lambda texts: np.zeros((len(texts), data.text_length), np.int32)
    return SimpleNamespace(vocab_size=data.vocab_size, encode=encode)


def main(argv):
    """Runs the program."""
    del argv
    config, rounds = flags.FLAGS.config, flags.FLAGS.rounds
    data, loop = configs.build(Data, config.data, "data"), configs.build(Loop, config.loop, "loop")
    recipe = Recipe(config, numbers_only(data), Dependencies())
    threads = {"jax": len(os.sched_getaffinity(0)), "torch": torch.get_num_threads()}
    report = {"device": jax.devices()[0].device_kind, "threads": threads, "rounds": rounds, "dtype": config.dtype}
    if flags.FLAGS.compare == "sampling":
        report |= compare_sampling(recipe, rounds)
    else:
        report |= compare_training(recipe, loop, rounds, flags.FLAGS.steps)
    print(json.dumps(report, default=float))


if __name__ == "__main__":
    configs.define_config_flag()
    flags.DEFINE_integer("rounds", 5, "Times that each side is measured.", lower_bound=1)
    flags.DEFINE_integer("steps", 10, "Training steps a round, a multiple of loop.steps_per_call.", lower_bound=1)
    flags.DEFINE_enum("compare", "training", ("training", "sampling"), "What to compare.")
    with exit_on_user_error():
        app.run(main, flags_parser=configs.parse_flags)
