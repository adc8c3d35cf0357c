"""--dry_run: parameters, cost and data of a recipe, with a sheet of its items, without training."""

import jax
import numpy as np

from zoo import config as configs
from zoo import media
from zoo.data import pipeline
from zoo.method import to_uint8
from zoo.runs.dependencies import prepare
from zoo.runs.inherit import completed
from zoo.runs.recipe import Recipe
from zoo.training import cost, parallel
from zoo.training.lengths import Loop

SHEET = 16  # items
CAPTIONS = 20_000  # at most, spread evenly over the data


def preview(config: configs.Config, out: str | None = None) -> str:
    """Writes a sheet of training items, and returns parameters, cost and captions of a recipe.

    The step is compiled for its memory, but not run.

    Args:
      config: whole config.
      out: image file for the sheet; by default dry_run.png, or .gif for videos, in the current folder.

    Returns:
      Parameters per module, FLOPs per step, memory against the device's, five captions, and the share that is cut.
    """
    loop, config = configs.build(Loop, config.loop, "loop"), completed(config)
    out = out or f"dry_run.{'png' if config.data.frames == 1 else 'gif'}"
    media.check_file(out)
    source, recipe = prepare(config)
    media.save(out, media.lay_out(out, *shown(source, recipe)), recipe.frame_rate)
    shapes = recipe.state_shapes()
    flops = recipe.step_flops(loop.accumulate)
    memory, there = step_memory(recipe, loop), cost.device_memory()
    captions = pipeline.captions(source, CAPTIONS)
    cut = recipe.tokenizer.is_cut(captions).mean()
    return "\n".join(
        [
            "parameters",
            *parameter_table(shapes.params),
            f"matmul FLOPs per step  {flops:.3e} over {jax.device_count()} device(s)",
            f"memory per device      {memory / 2**20:,.0f} MiB of {there / 2**20:,.0f} MiB",
            *examples(source, recipe),
            f"captions               {cut:.1%} of {len(captions):,} are cut to {recipe.data.text_length} tokens",
            *(f"  {caption}" for caption in captions[:: max(1, len(captions) // 5)][:5]),
            f"{SHEET} items as the network gets them -> {out}",
        ]
    )


def examples(source: pipeline.Source, recipe: Recipe) -> list[str]:
    """A line with the number of examples, and one with that of images beside videos where there are any."""
    lines, data = [f"examples               {len(source):,} in {recipe.data.source}"], recipe.data
    if data.images:
        count = len(recipe.images("train"))
        lines.append(f"images beside them     {count:,} in {data.images}, {data.images_batch_size} in a step")
    return lines


def shown(source: pipeline.Source, recipe: Recipe) -> tuple[np.ndarray, list[str]]:
    """Returns the first items of training, uint8 (N, T, H, W, 3), and their captions, as the network gets them.

    Mirrored, resized and cut as in training; latents are decoded again.

    Args:
      source: training data.
      recipe: recipe of the run.
    """
    stream = recipe.stream(source)
    batches = [next(stream) for _ in range(-(-SHEET // (recipe.data.batch_size // jax.process_count())))]
    inputs = np.concatenate([batch["inputs"] for batch in batches])[:SHEET]
    tokens = np.concatenate([batch["cond"]["tokens"] for batch in batches])[:SHEET]
    if recipe.codec:
        inputs = to_uint8(recipe.codec.decode(recipe.dependencies.frozen, jax.numpy.asarray(inputs)))
    return np.asarray(inputs), recipe.tokenizer.decode(tokens)


def parameter_table(params) -> list[str]:
    """A line for each module two levels below its player, and one for all."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(key.key for key in path[:3])
        counts[name] = counts.get(name, 0) + leaf.size
    width = max(map(len, counts))
    return [f"  {name:{width}}  {count:>13,}" for name, count in (counts | {"all": sum(counts.values())}).items()]


def step_memory(recipe: Recipe, loop: Loop) -> int:
    """Bytes that one call of the compiled step needs on each device."""
    count = parallel.per_device(recipe.data.batch_size, loop.accumulate)
    local = jax.local_device_count()

    def arguments():
        batch = recipe.blank_batch(count)
        batches = jax.tree.map(lambda x: jax.numpy.broadcast_to(x, (local, loop.steps_per_call, *x.shape)), batch)
        trees = recipe.create_state(), recipe.dependencies.frozen
        return *jax.tree.map(lambda x: jax.numpy.broadcast_to(x, (local, *x.shape)), trees), batches

    step = parallel.pmap(recipe.step(loop.steps, loop.accumulate, parallel.Devices()))
    return cost.compiled_memory(step.lower(*jax.eval_shape(arguments)).compile())
