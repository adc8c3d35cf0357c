"""The one training loop. It depends on players and steps, and on no family."""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tqdm

from zoo import config as configs
from zoo import media
from zoo.data import pipeline
from zoo.errors import UserError
from zoo.evaluation.evaluator import Evaluator
from zoo.evaluation.held_out import HeldOut, explain
from zoo.families import get_dtype
from zoo.files import atomic, local, read_text
from zoo.runs.data import build_data
from zoo.runs.dependencies import prepare
from zoo.runs.inherit import completed
from zoo.runs.run import pick_params
from zoo.runs.sampler import Sampler
from zoo.training import cost, metrics, parallel, processes
from zoo.training.checkpoint import Checkpoints
from zoo.training.diagnosis import Profile, out_of_memory, remedy_in_training, stopping_at_nans
from zoo.training.lengths import Loop
from zoo.training.metrics import Meter, Window, Writer
from zoo.training.shutdown import GracefulShutdown
from zoo.training.state import State


def train(config: configs.Config, workdir: str | Path, profile: int = 0, debug_nans: bool = False) -> State:
    """Trains a config in a workdir, from its newest checkpoint where there is one.

    Args:
      config: whole config.
      workdir: folder of the run; created if it does not exist.
      profile: number of steps to trace to WORKDIR/profile.
      debug_nans: whether to stop at the first value that is not finite, and name its layer.

    Returns:
      The last state, as numpy. After Ctrl-C or SIGTERM it is the saved one, and a line on stderr explains
      how to resume.

    Raises:
      UserError: the config or the data cannot be used, the workdir holds another run, saving failed, a device is
        out of memory, or `loop.max_bad_steps` steps in a row were not finite.
    """
    workdir = local(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {str(workdir)!r} is a file; give a folder")
    return Training(config, workdir, profile, debug_nans).run()


def check_workdir(workdir: Path, config: configs.Config, saved: str | None) -> None:
    """Raises UserError if config.json or the newest checkpoint (`saved`) differs, but for `loop` and data's workers.

    Where nothing was saved or logged there is no run that could be mixed with another.
    """
    file = workdir / "config.json"
    if saved is None and not ((workdir / metrics.FILE).exists() and metrics.read(workdir)):
        return
    for text in filter(None, (saved, read_text(file) if file.exists() else None)):
        changes = configs.differences(configs.from_json(text, str(file)), config)
        other = [change for change in changes if not change.startswith(("loop.", "data.threads:", "data.workers:"))]
        if other:
            raise UserError(f"{workdir} holds another run; it differs in {'; '.join(other)}; choose another --workdir")
    if file.exists() and changes:
        processes.note(f"the run goes on with {'; '.join(changes)}")


class Training:
    """A run of the loop."""

    def __init__(self, config: configs.Config, workdir: Path, profile: int = 0, debug_nans: bool = False):
        self.workdir, self.loop = workdir, configs.build(Loop, config.loop, "loop")
        self.profile = Profile(workdir / "profile", profile)
        self.debug_nans = debug_nans
        self.checkpoints = Checkpoints(workdir, max_to_keep=self.loop.max_to_keep)
        self.newest, saved = self.checkpoints.metadata() or (None, None)
        config = completed(config, saved)
        there = json.dumps(saved["config"]) if saved else None
        processes.check_same("config", configs.to_json(config))
        processes.from_first(lambda: check_workdir(workdir, config, there))
        self.check_lengths(config)  # before data is built, which may take minutes
        self.source, self.recipe = prepare(config, saved, workdir)
        self.frozen = self.recipe.dependencies.frozen

    def check_lengths(self, config: configs.Config) -> None:
        """Raises UserError where batches cannot be dealt out evenly, or calls do not end at the last step."""
        data = build_data(config.data)
        parallel.per_device(data.batch_size, self.loop.accumulate)
        if data.images:
            parallel.per_device(data.images_batch_size, self.loop.accumulate, "data.images_batch_size")
        self.loop.check(self.newest or 0)

    def run(self) -> State:
        """See `train`."""
        try:
            with out_of_memory(remedy_in_training(self.loop.accumulate, self.recipe.data.batch_size)):
                state, start = self.start()
                left = processes.from_first(lambda: metrics.missing(self.workdir, start, self.loop.due_at(start)))
                if start >= self.loop.steps and not left:
                    self.note_trained(start, "; there is no step left to trace" if self.profile.steps else "")
                    return parallel.unreplicate(state)
                self.loop.check(start)
                if self.loop.held_out_every:
                    self.held_out  # noqa: B018, so that a split that is missing is an error before training
                processes.from_first(lambda: self.open(start))
                return self.train(state, start, left)
        finally:
            self.checkpoints.close()

    def open(self, start: int) -> None:
        """Checks what scores and grids need, so that it is an error before training, and writes the run's files."""
        if self.loop.score_every:
            self.evaluator  # noqa: B018, which opens its measures
        if self.loop.grid_every:
            _, cond = self.grid  # which opens the test split
            self.sampler.check(self.recipe.state_shapes().params | {"frozen": self.frozen}, cond)
        if not start:
            if self.recipe.new_parts:
                processes.note(
                    f"init: {self.recipe.config.init} lacks {', '.join(self.recipe.new_parts)}: they start as drawn"
                )
            self.recipe.dependencies.write(self.workdir)
        metrics.prune(self.workdir, start)
        with atomic(self.workdir / "config.json") as unfinished:
            unfinished.write_text(configs.to_json(self.recipe.config))

    def train(self, state: State, start: int, left: Sequence[str] = ()) -> State:
        """Trains from a replicated state on, after what is left to make at its step; returns the last one, saved."""
        with GracefulShutdown() as shutdown, Writer(self.workdir, processes.first()) as self.writer, self.profile:
            if left:
                self.make(left, start, state, parallel.replicate(self.frozen))
            if start < self.loop.steps:
                state = self.go(state, start, shutdown)
            final = parallel.unreplicate(state)
            processes.from_first(self.checkpoints.wait)
        if final.step < self.loop.steps:
            processes.note(f"stopped and saved at step {final.step} of {self.loop.steps}; the same command resumes")
        elif start < self.loop.steps:
            self.note_trained(int(final.step))
        return final

    def note_trained(self, step: int, more: str = "") -> None:
        """Prints that no step is left."""
        processes.note(f"{self.workdir} is trained to step {step}; sample it with sample.py{more}")

    def start(self) -> tuple[State, int]:
        """The replicated state to go on from, and its step."""
        shapes = self.recipe.state_shapes()
        fields = {name: getattr(shapes, name) for name in State.__dataclass_fields__}
        found = self.checkpoints.restore(fields, newest=self.newest)
        if not found:
            return parallel.replicate(self.recipe.initial_state()), 0
        step, fields = found
        processes.from_first(lambda: self.checkpoints.set_aside(newer_than=step))
        processes.note(f"resuming from step {step}")
        return parallel.replicate(State(**fields)), step

    def batches(self, start: int) -> Iterator[dict[str, jax.Array]]:
        """Sharded batches, `steps_per_call` at a time, from step `start` on."""
        stream = self.recipe.stream(self.source, start)
        calls = ([next(stream) for _ in range(self.loop.steps_per_call)] for _ in itertools.count())
        return parallel.prefetch(parallel.stack_and_shard(call) for call in calls)

    def go(self, state: State, step: int, shutdown: GracefulShutdown) -> State:
        """Steps until the end or a signal; logs, saves and draws on the way."""
        loop, window, meter = self.loop, Window(), self.meter()
        steps = parallel.pmap(self.recipe.step(loop.steps, loop.accumulate, parallel.Devices()))
        if self.debug_nans:
            steps = stopping_at_nans(steps)
        frozen = parallel.replicate(self.frozen)
        hidden = not processes.first() or None  # None: where stderr is no terminal
        processes.note("compiling the training step, which takes seconds to minutes")
        with tqdm.tqdm(total=loop.steps, initial=step, unit="step", disable=hidden, mininterval=1) as bar:
            for call, batch in enumerate(self.batches(step)):
                state, metrics = steps(state, frozen, batch)
                window.add(metrics)
                meter.count(metrics)
                self.profile.count(loop.steps_per_call, metrics)
                step += loop.steps_per_call
                bar.update(loop.steps_per_call)
                last = step >= loop.steps
                save_now, due = loop.due(loop.checkpoint_every, step), loop.due_at(step)
                # Whatever holds the devices up ends the window, so that rates are those of training alone.
                log_now = loop.due(loop.log_every, step) or save_now or bool(due) or last
                if log_now:
                    losses = self.log(step, state, window, meter)
                    bar.set_postfix(losses, refresh=False)
                    if bar.disable and save_now:  # where no bar is seen
                        processes.note(f"step {step} of {loop.steps}: {', '.join(map(' '.join, losses.items()))}")
                stop = shutdown.agreed(call, log_now)
                if save_now or last or stop:  # before drawing, which may fail
                    self.save(state, always=last or stop)
                if stop and not last:
                    return state
                self.make(due, step, state, frozen)
                if last:
                    return state
                if log_now:
                    meter.restart()
        return state

    def meter(self) -> Meter:
        """A meter of this run's steps."""
        peak = cost.matmul_peak(get_dtype(self.recipe.config.dtype)) * jax.device_count()
        flops = self.recipe.step_flops(self.loop.accumulate)
        return Meter(self.recipe.data.batch_size, self.loop.steps_per_call, flops, peak)

    def log(self, step: int, state: State, window: Window, meter: Meter) -> dict[str, str]:
        """Writes the window's means and returns the losses; raises UserError where the run has diverged."""
        means, bad = window.take()
        counts = parallel.unreplicate({"skipped": state.skipped, "bad": state.consecutive_nonfinite})
        if counts["bad"] >= min(self.loop.max_bad_steps, self.loop.steps):
            saved = "; the checkpoints there are from before" if self.checkpoints.steps() else ""
            raise UserError(
                f"the last {counts['bad']} steps up to {step} were not finite, first of all {bad}; lower the learning "
                f"rate and train in another --workdir than {self.workdir}{saved}"
            )
        self.writer.scalars(step, means | meter.rates() | {"skipped_updates": float(counts["skipped"])})
        return {name: f"{value:.4f}" for name, value in means.items() if name.endswith("loss")}

    def save(self, state: State, always: bool) -> None:
        """Saves the state unless its step is already saved.

        Args:
          state: replicated state.
          always: whether to save it after a step that was not finite too, which may have come of its parameters.
        """

        def write() -> None:
            own = parallel.unreplicate(state)
            if int(own.step) not in self.checkpoints.steps() and (always or not own.consecutive_nonfinite):
                self.checkpoints.save(own, self.recipe.metadata())

        processes.from_first(write)

    def make(self, due: Sequence[str], step: int, state: State, frozen: Any) -> None:
        """Makes what is due, see `Loop.due_at`: grids and scores on process 0, while the others wait."""

        def draw() -> None:
            if "grid" in due:
                self.draw_grid(step, state)
            if "score" in due:
                self.writer.scalars(step, self.evaluator(self.averaged(state)))

        if "held_out" in due:
            self.writer.scalars(step, self.held_out(state.params, frozen, step))
        if "grid" in due or "score" in due:
            processes.from_first(draw)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Sampler of the config, compiled once."""
        return self.recipe.sampler()

    @functools.cached_property
    def test(self) -> pipeline.Source:
        """The test split, opened once."""
        return self.recipe.data.open("test")

    @functools.cached_property
    def grid(self) -> tuple[list[str], dict[str, Any]]:
        """Captions of the sample grid, and their conditions."""
        return self.recipe.shown(self.test, self.loop.grid_prompts)

    @functools.cached_property
    def held_out(self) -> HeldOut:
        """Losses on `loop.held_out_num` items of the test split."""
        test = self.recipe.encoded(self.test, "test")
        explain(test, self.source, self.recipe.data.batch_size)
        return HeldOut(self.recipe, test, self.loop.held_out_num, self.loop.accumulate)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """Evaluator of `loop.score_measures`."""
        return Evaluator(self.recipe, self.sampler, self.loop.score_num, self.loop.score_measures)

    def averaged(self, state: State) -> dict[str, Any]:
        """Parameters to sample with, of each player its longest average, and the frozen ones."""
        fields = parallel.unreplicate({"params": state.params, "ema": state.ema})
        return pick_params(fields, None) | {"frozen": self.frozen}

    def draw_grid(self, step: int, state: State) -> None:
        """Samples the grid's prompts with the averaged parameters into samples/step_N.png (.gif for videos)."""
        captions, cond = self.grid
        grid = media.grid(self.sampler(self.averaged(state), cond, seed=0), labels=captions)
        suffix = "png" if len(grid) == 1 else "gif"
        media.save(self.workdir / "samples" / f"step_{step:07d}.{suffix}", grid, self.recipe.frame_rate)
        self.writer.image(step, "samples", grid[0])
