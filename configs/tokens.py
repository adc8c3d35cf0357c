"""Text to image on the codes of a tokenizer, which configs/patches.py trains.

    python train.py --config configs/patches.py:demo --workdir runs/patches_demo
    python train.py --config configs/tokens.py:masked,demo --workdir runs/masked_demo             two CPU cores
    python train.py --config configs/tokens.py:autoregressive,demo --workdir runs/autoregressive_demo

`masked`, the default, draws codes in parallel and in few passes, `autoregressive` draws one after the other.
`--config.data.codes` names the tokenizer; with "pixels", the codes are the numbers of the images themselves.
`continuous` draws vectors, of a tokenizer trained with the word `vectors`, which `--config.data.latents` names.
`critic` adds to `masked` a critic that finds codes which do not fit (Token-Critic 2209.04439). With `coarse` the family
draws every second row and column alone, and a `masked` run, `--config.method.filler`, all codes between them. `policy`
changes a trained run, `--config.init`, by a reward (REINFORCE, as in DDPO 2305.13301). `video` draws the codes of
videos, of a tokenizer that was trained with this word. Without `demo` the recipe is for an accelerator (not measured),
with `test` it takes two steps, for tests.
"""

from zoo import recipes
from zoo.config import arguments
from zoo.errors import UserError

FAMILIES = "masked", "autoregressive", "continuous"
WORDS = (*FAMILIES, "critic", "coarse", "policy", "video", "demo", "test")


def get_config(text=None):
    """Returns the config of the recipe with the words in `text`, see the module."""
    words = arguments(text, WORDS)
    families = sorted(words & set(FAMILIES))
    if len(families) > 1:
        raise UserError(f"a recipe is of one family: give one of the words {' and '.join(families)}")
    name = families[0] if families else "masked"
    config = recipes.get_config(
        dtype="bfloat16",
        data=dict(source="scenes/full", size=32, batch_size=256, text_length=40, vocab_size=512, codes="runs/patches"),
        players=dict(model=recipes.player(learning_rate=5e-4, warmup_steps=500, ema_half_lives=(500.0, 5000.0))),
        method=dict(
            name=name,
            net=dict(
                width=384,
                depth=12,
                heads=6,
                conditioner=dict(width=256, depth=4, heads=4),
                remat="cheap",
                attention="auto",
            ),
            caption_drop=0.1,
        ),
        loop=dict(steps=60_000, steps_per_call=10, log_every=200, checkpoint_every=5000, grid_every=5000),
        sample=dict(guidance=1.0, temperature=1.0),
    )
    if name != "continuous":
        config.sample.update(dict(top_k=0, top_p=1.0))
    if name != "autoregressive":
        net = dict(patch_size=1, text="joint", space_time="joint", positions="rotary", time_frequency=1000.0)
        config.method.net.update(net)
        config.method.mask_schedule = "arccos"
        config.sample.update(dict(steps=16, schedule="arccos", order="random"))
    if name == "autoregressive":
        config.sample.draft_length = 4  # read with `sample.py --speculate`
    if name == "masked":
        config.sample.update(dict(order="confidence", noise=1.0, interval=(0.0, 1.0), guidance_ramp=False))
        config.sample.update(dict(erase="none", erase_share=0.0, erase_sharpness=10.0))
    if name == "continuous":
        config.data.update(dict(codes="", latents="runs/vectors"))
        config.method.update(dict(head_width=256, head_depth=3))
        config.sample.head_steps = 20
    if "demo" in words:
        _for_demo(config)
    if "test" in words:
        _for_tests(config)
    if "video" in words:
        _for_videos(config, words)
    if "critic" in words:
        _plug_in_token_critic(config)
    if "coarse" in words:
        _draw_coarse_codes(config, words)
    if "policy" in words:
        _for_rewards(config)
        if "test" not in words:
            recipes.for_reward_runs(config, policy=True)
    return config


def _plug_in_token_critic(config):
    """Wraps a masked generator with a critic of its codes, a network like its own."""
    if config.method.name != "masked":
        raise UserError(f"a critic masks codes again, which {config.method.name} cannot: give the word masked")
    base = config.method.to_dict()
    config.method = dict(name="token_critic", base=base, critic=base["net"])
    config.players.critic = dict(config.players.model)
    config.sample.erase = "critic"


def _for_videos(config, words):
    """Codes of chunks of frames; attention over space and over time in turn, where it has no order."""
    if "test" in words:
        config.data.update(dict(source="scenes/video_one?examples=64&fps=4", frames=4))
    elif "demo" in words:
        config.data.update(dict(source="scenes/video_one?omit=0&fps=8", frames=9, text_length=20))
    else:
        config.data.update(dict(source="scenes/video_one?fps=8", frames=17))
    for kind in ("codes", "latents"):
        if config.data[kind].startswith("runs/"):
            config.data[kind] += "_video"
    if config.method.name != "autoregressive":
        config.method.net.space_time = "factorized"


def _draw_coarse_codes(config, words):
    """Makes the family that of a coarse grid, which a masked run fills; sampling options are those of that run."""
    if config.method.name == "continuous" or "critic" in words:
        raise UserError("coarse is for codes, without a critic: give the word autoregressive or masked")
    filler = "runs/masked" + "".join(f"_{word}" for word in ("demo", "video") if word in words)
    config.method = dict(name="coarse", base=config.method.to_dict(), filler=filler, stride=2)
    rest = words - {"coarse", "autoregressive", "masked"}
    config.sample = get_config(",".join(sorted(rest | {"masked"}))).sample


def _for_rewards(config):
    """Low-rank changes of a trained run, given by --config.init=RUN; places are chosen without regard to the codes."""
    config.sample.guidance = 0.0
    sampling = dict(guidance=0.0)
    if config.method.name == "masked":
        config.sample.order = "random"
        sampling |= dict(order="random", steps=config.sample.steps, schedule=config.sample.schedule)
    recipes.plug_in_reward(config, gradient="policy", reward="oracle", sampling=sampling)


def _for_demo(config):
    recipes.for_two_cores(config)
    recipes.for_demo(config)
    config.data.update(dict(latents="runs/vectors_demo") if config.data.latents else dict(codes="runs/patches_demo"))
    config.method.net.update(dict(width=192, depth=4, heads=3, conditioner=dict(width=64, depth=2, heads=1)))
    steps = 2000 if config.method.name == "autoregressive" else 1300
    config.loop.update(dict(steps=steps, checkpoint_every=500, grid_every=500))


def _for_tests(config):
    """Codes are pixels, vectors are red, green and blue: no other run is needed."""
    recipes.for_tests(config)
    config.data.update(dict(codes="pixels" if config.data.codes else "", latents=""))
    config.method.net.update(dict(width=32, depth=1, heads=2, conditioner=dict(width=16, depth=1, heads=1)))
    if config.method.name != "autoregressive":
        config.method.net.patch_size = 4
        config.sample.steps = 2
    if config.method.name == "continuous":
        config.method.update(dict(head_width=16, head_depth=1))
        config.sample.head_steps = 2
