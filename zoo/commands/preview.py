"""--dry_run: parameters, cost and data of a recipe, without training."""

import jax

from zoo import config as configs
from zoo.loop import Loop
from zoo.runs.dependencies import prepare
from zoo.runs.recipe import Recipe
from zoo.training import cost, parallel


def preview(config: configs.Config) -> str:
    """Returns parameters per module, FLOPs per step, memory against the device's, and five captions of the data.

    Nothing is written. The step is compiled for its memory, but not run.
    """
    loop = configs.build(Loop, config.loop, "loop")
    source, recipe = prepare(config)
    shapes = recipe.state_shapes()
    flops = recipe.step_flops(loop.accumulate)
    memory, there = step_memory(recipe, loop), cost.device_memory()
    captions = [source[i]["text"] for i in range(min(5, len(source)))]
    return "\n".join(
        [
            "parameters",
            *parameter_table(shapes.params),
            f"matmul FLOPs per step  {flops:.3e} over {jax.device_count()} device(s)",
            f"memory per device      {memory / 2**20:,.0f} MiB of {there / 2**20:,.0f} MiB",
            f"examples               {len(source):,} in {recipe.data.source}",
            "captions",
            *(f"  {caption}" for caption in captions),
        ]
    )


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
