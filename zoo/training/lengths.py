"""Lengths and intervals of training."""

import dataclasses

from zoo.errors import UserError, check_ranges


@dataclasses.dataclass(frozen=True)
class Loop:
    """Lengths and intervals of training; the fields are the keys of `config.loop`. Intervals count steps.

    Attributes:
      steps: steps of the whole run.
      steps_per_call: steps in one compiled call; more of them hide the cost of starting small ones.
      accumulate: parts that a device takes its batch in, one after the other, to save memory.
      log_every: interval of the metrics.
      checkpoint_every: interval of the checkpoints.
      grid_every: interval of the sample grids, which the last step draws too; 0 for never.
      grid_prompts: captions of the grid; by default 16 spread evenly over the test split.
      held_out_every: interval of the losses on the test split, which the last step computes too; 0 for never.
      held_out_num: items for them, in whole batches.
      score_every: interval of the scores, which the last step computes too; 0 for never.
      score_num: samples to score.
      score_measures: names of measures, see `evaluation.measures`.
      max_to_keep: number of the newest checkpoints to keep.
      max_bad_steps: give up after this many steps in a row that were not finite.
    """

    steps: int
    steps_per_call: int = 1
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    grid_every: int = 1000
    grid_prompts: tuple[str, ...] = ()
    held_out_every: int = 0
    held_out_num: int = 512
    score_every: int = 0
    score_num: int = 128
    score_measures: tuple[str, ...] = ("all",)
    max_to_keep: int = 2
    max_bad_steps: int = 20

    def __post_init__(self):
        once = ("steps", "steps_per_call", "accumulate", "log_every", "checkpoint_every", "max_to_keep")
        once += ("max_bad_steps", "held_out_num", "score_num")
        never = ("grid_every", "held_out_every", "score_every")
        check_ranges(self, **dict.fromkeys(once, "[1, inf)"), **dict.fromkeys(never, "[0, inf)"))

    def due(self, every: int, step: int) -> bool:
        """Whether a multiple of `every` lies in the call that ended with `step`."""
        return every > 0 and step // every > (step - self.steps_per_call) // every

    def due_at(self, step: int) -> list[str]:
        """Names of what is made after the call that ended with `step`, beside the checkpoint: held_out, grid, score."""
        every = {"held_out": self.held_out_every, "grid": self.grid_every, "score": self.score_every}
        inside = 0 < step <= self.steps
        return [name for name, n in every.items() if inside and (self.due(n, step) or (step == self.steps and n))]

    def check(self, start: int) -> None:
        """Raises UserError where the calls do not end exactly at the last step."""
        if max(0, self.steps - start) % self.steps_per_call:
            raise UserError(
                f"loop.steps {self.steps} less the {start} done is no multiple of loop.steps_per_call "
                f"{self.steps_per_call}; change one of them"
            )
