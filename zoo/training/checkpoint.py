"""Checkpoints that carry all that a run needs: the state, and its metadata (config, tokenizer, dependencies)."""

import contextlib
import functools
import itertools
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from zoo.config import FORMAT_VERSION, check_format
from zoo.errors import UserError
from zoo.training import processes
from zoo.training.state import State
from zoo.trees import path_name

STATE_FIELDS = tuple(State.__dataclass_fields__)
METADATA = "metadata"


class Checkpoints:
    """The checkpoints of one workdir, written in the background; a step is there whole or not at all.

    Of several processes the first alone writes and reads them, and sends what it read to the others; all must call the
    methods that read.

    Args:
      workdir: the run's folder.
      max_to_keep: number of the newest checkpoints to keep.
      read_only: for a run that may still be training.

    Raises:
      UserError: there is nothing to read.
    """

    def __init__(self, workdir: str | Path, max_to_keep: int = 2, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # logs twenty lines per save; errors are raised too
        self.folder = Path(workdir).absolute() / "checkpoints"
        if read_only and not processes.from_first(self.folder.is_dir):
            raise UserError(f"{workdir} holds no checkpoint; train it first, or wait for its first checkpoint")
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        handlers = item_handlers(alone)
        self.reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone), **handlers
            ),
            multiprocessing_options=alone,
        )
        self.manager: Any = None
        if not read_only and processes.first():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.folder} cannot be made ({error.strerror}): choose another --workdir") from None
            options = ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep, create=False, cleanup_tmp_directories=True, multiprocessing_options=alone
            )
            self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The steps that are there, oldest first: those whose folder has its last name.

        Orbax's own list also reads each one's date, and fails where the writer deletes an old one meanwhile.
        """
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir())

    def save(self, state: State, metadata: Mapping[str, Any]) -> None:
        """Begins to save a host copy of a state, and the run's metadata, which JSON can hold; on process 0 alone.

        Args:
          state: state on the host.
          metadata: beside the state, as JSON can write it.

        Raises:
          UserError: this or the previous save failed, for instance for want of disk space.
        """
        flat = {field: flatten(jax.tree.map(np.asarray, getattr(state, field))) for field in STATE_FIELDS}
        items: dict[str, Any] = {field: ocp.args.PyTreeSave(leaves) for field, leaves in flat.items()}
        items[METADATA] = ocp.args.JsonSave(dict(metadata) | {"format_version": FORMAT_VERSION})
        with self._failing_in_one_line():
            self.manager.save(int(state.step), args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns when the last save of this process is on the disk; raises UserError where it failed."""
        if self.manager:
            with self._failing_in_one_line():
                self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the writer."""
        try:
            self.wait()
        finally:
            if self.manager:
                self.manager.close()

    @contextlib.contextmanager
    def _failing_in_one_line(self):
        try:
            yield
        except Exception as error:  # the writer raises whatever the file system made of it
            whole = self.steps()
            kept = f"the checkpoint of step {whole[-1]} is whole" if whole else "there is no earlier one"
            raise UserError(
                f"could not save a checkpoint to {self.folder}: {one_line(error)}; {kept}; "
                "free disk space and run the same command again"
            ) from error

    def restore(
        self, target: Mapping[str, Any], step: int | None = None, newest: int | None = None, partial: bool = False
    ) -> tuple[int, dict[str, Any]] | None:
        """Reads fields of a state, as numpy.

        Args:
          target: {field of State: tree with the shapes that are expected}.
          step: which checkpoint; by default the newest that can be read, and damaged ones are listed on stderr.
          newest: newest checkpoint that may be read: the one whose metadata was read.
          partial: whether the fields may have more parameters than the target, which are not read.

        Returns:
          The step and the fields; None where there is no checkpoint.

        Raises:
          UserError: no such step, none can be read, or it is of another architecture (names the parameters).
        """

        def read(step):
            wanted = {field: flatten(tree) for field, tree in target.items() if jax.tree.leaves(tree) or not partial}
            if partial:
                there: Any = self.reader.metadata(self.folder / str(step)).item_metadata
                for field, leaves in wanted.items():
                    saved = {name: there[field].tree[name] for name in leaves if name in there[field].tree}
                    unflatten(target[field], saved, field)  # compares the shapes
            names = {
                field: ocp.args.PyTreeRestore(dict.fromkeys(leaves, 0), partial_restore=True)
                if partial
                else ocp.args.PyTreeRestore()
                for field, leaves in wanted.items()
            }
            saved = self.reader.restore(self.folder / str(step), args=ocp.args.Composite(**names))
            return {
                field: unflatten(tree, saved[field], field) if field in wanted else tree
                for field, tree in target.items()
            }

        found: Any = None

        def read_here() -> int | None:
            nonlocal found
            found = self._newest(read, step, newest)
            return found and found[0]

        chosen = processes.from_first(read_here)
        if chosen is None:
            return None
        blank = lambda: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
        return chosen, processes.arrays_from_first(found[1] if found else blank())

    def metadata(self, step: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Reads the metadata that was given to `save`, with its step; see `restore`.

        Args:
          step: step of the checkpoint; by default the newest that can be read.

        Raises:
          UserError: as `restore`, or the checkpoint has another format version.
        """

        def read(step):
            if (self.folder / str(step) / "config").exists():  # of the first format
                check_format(1, f"the checkpoint ({self.folder / str(step)})")
            saved = self.reader.restore(
                self.folder / str(step), args=ocp.args.Composite(**{METADATA: ocp.args.JsonRestore()})
            )[METADATA]
            check_format(saved.pop("format_version", 1), f"the checkpoint ({self.folder / str(step)})")
            return saved

        found = processes.from_first(lambda: self._newest(read, step))
        return found and (found[0], found[1])

    def _newest(self, read, step: int | None, newest: int | None = None):
        steps = self.steps()
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.folder}; there are {steps or 'none'}")
        wanted = [step] if step is not None else [s for s in steps[::-1] if newest is None or s <= newest]
        for candidate in wanted:
            try:
                return candidate, read(candidate)
            except UserError:
                raise
            except Exception as error:  # anything can be wrong with a file
                print(f"checkpoint of step {candidate} is damaged ({one_line(error)}) and not used", file=sys.stderr)
        if steps:
            tried = ", ".join(map(str, wanted)) or f"up to {newest}, which are gone"
            raise UserError(
                f"no checkpoint in {self.folder} can be read; tried steps {tried}: restore one, or train again"
            )
        return None

    def set_aside(self, newer_than: int) -> None:
        """Moves checkpoints newer than a step, which could not be read, out of the way; on process 0 alone."""
        for step in self.steps():
            if step > newer_than:
                names = (f"damaged_checkpoint_{step}" + (f"_{i}" if i else "") for i in itertools.count())
                free = next(name for name in names if not (self.folder.parent / name).exists())
                (self.folder / str(step)).rename(self.folder.parent / free)
        self.manager.reload()


def item_handlers(processes: ocp.options.MultiprocessingOptions) -> dict[str, Any]:
    """Returns the writer and reader of each item of a checkpoint, for the processes that use them."""
    tree = functools.partial(ocp.PyTreeCheckpointHandler, multiprocessing_options=processes)
    return {field: tree() for field in STATE_FIELDS} | {
        METADATA: ocp.JsonCheckpointHandler(multiprocessing_options=processes)
    }


def one_line(error: Exception) -> str:
    """The beginning of an error's message, without its line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Returns a tree as one level, {"a.b.c": array}.

    A tree that is a leaf gets the name "value"; one without leaves, such as no averages, is one 0 called "none", since
    nothing cannot be saved.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path, ".") or "value": leaf for path, leaf in leaves} or {"none": np.zeros((), np.int32)}


def unflatten(target: Any, flat: Mapping[str, np.ndarray], what: str) -> Any:
    """Puts flat arrays into the structure of `target`; raises UserError naming those that do not fit."""
    wanted = flatten(target)

    def shape(tree, name):
        return tree[name].shape if name in tree else "none"

    wrong = [
        f"{name} (saved: {shape(flat, name)}, expected: {shape(wanted, name)})"
        for name in sorted(wanted.keys() | flat.keys())
        if shape(flat, name) != shape(wanted, name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"the checkpoint is of another architecture; its {what} differ: {'; '.join(wrong[:3])}{more}")
    structure = jax.tree.structure(target)
    return jax.tree.unflatten(structure, [flat[name] for name in wanted][: structure.num_leaves])
