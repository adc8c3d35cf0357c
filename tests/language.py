"""Checks that names and words which were given up have not come back: python -m tests.language"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Captions say "a picture of": the CLIP that ships was trained on them. Files of others keep their words.
EXEMPT = ("zoo/scenes/grammar.py", "zoo/pretrained/clip_scenes/", "tests/fixtures/", "tests/language.py", "LICENSE")
# Anywhere in a text file, in any case.
WORDS = {
    r"pictures?": "image",
    r"judge[sd]?|judg(e?ment|ing)s?|verdicts?": "reward; score",
    r"leash(es)?": "delta_penalty",
    r"trunks?": "feature network",
    r"told": "the verb of what happens: an error, printed, differs",
    r"taught": "trained by a reward",
    r"falsified": "hard_negative",
    r"badinput": "UserError",
    r"faithful": "inversion_options",
    r"fooling": "generator_loss",
    r"whiten": "standardize",
    r"copying": "memorization",
    r"scenes/clips": "scenes/video",
    r"zoo\.scoring|zoo\.edit|zoo\.training\.(run|loop)|zoo/scoring": "zoo.evaluation, zoo.runs, zoo.loop",
}
# Networks, losses and files have no minds: in all but the bodies of tests.
MINDS = {
    "tells?|says?|said|speaks?|spoke": "print, state, name, contain",
    "asks?|asked": "need, request",
    "sees|saw|hears?|feels?|thinks?|dares?|believes?": "the verb of what happens",
    "knows?|knew|remembers?": "have, keep",
}
# Identifiers, anywhere.
IDENTIFIERS = {
    r"taught_by|told_apart": "with_reward, pair_accuracy",
    r"fake_of": "fake_kind",
    r"needs_runs": "DEPENDENCIES",
    r"log_prob_of_walk": "trajectory_log_prob",
    r"read_caption": "encode_text",
    r"_looks|_show": "_critic_inputs, _augment_and_noise",
    r"adaptive_on": "last_layer",
    r"importance_bound": "iwae_bound",
    r"sum_each": "sum_except_batch",
    r"half_kept": "coupling_mask",
    r"share_of": "depth_scaled_init",
    r"bad_in_a_row": "consecutive_nonfinite",
    r"first_state": "initial_state",
    r"in_parts": "pmap_in_batches",
}
# Names that a file defines: of classes, functions, arguments and fields.
NAMES = {
    "Showing": "HasFakeSample",
    "Likely": "HasLikelihood",
    "Reconstructing": "Reconstructs",
    "Editable": "Invertible",
    "Stepwise": "HasTrajectory",
    "walk": "sample_trajectory",
    "Leaning": "dependencies",
    "Taught": "Rewarded",
    "Seeing": "FeatureExtractor",
    "see": "features",
    "Rating": "Scorer",
    "Reading": "TextAttentionBlock",
    "Memory": "KVCache",
    "remember": "init_cache",
    "turn": "reverse_if_odd",
    "Estimate": "Prediction",
    "mix": "interpolate",
    "halve": "downsample",
    "double": "upsample",
    "fold": "merge_frames",
    "unfold": "split_frames",
    "twice": "duplicate_for_guidance",
    "repeat": "scan_blocks",
    "claim": "write_config",
    "Stop": "GracefulShutdown",
    "Task": "EvalContext",
    "unknown": "unknown_name_error",
}
# The same, of single files.
NAMES_OF = {
    "zoo/wrappers/rewarded.py": {
        "scale": "alpha",
        "adapt": "target_modules",
        "group": "group_size",
    },
    "zoo/wrappers/adversarial.py": {"share": "adversarial_weight"},
    "zoo/methods/mean_flow.py": {"equal": "data_proportion", "power": "norm_p"},
    "zoo/methods/diffusion.py": {"error": "loss_space", "times": "time_distribution"},
    "zoo/method.py": {"pixels": "inputs"},
    "zoo/training/lengths.py": {"keep": "max_to_keep"},
    "zoo/runs/recipe.py": {"texts": "metadata", "keep": "max_to_keep"},
}
OPENINGS = r"(What|Of|That of|Those of|Who|Where|How)\b"  # of docstrings
MODULES = {"ask", "judge", "trust", "steps", "modes", "arithmetic", "hooks"}
TEXT = {".py", ".md", ".txt", ".toml", ""}


def main() -> int:
    """Prints each fault as FILE:LINE: word: use ...; returns how many there are."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    count = 0
    for name in listed.splitlines():
        file = ROOT / name
        if file.suffix not in TEXT or name.startswith(EXEMPT) or not file.is_file():
            continue
        for line, word, better in faults(name, file.read_text()):
            print(f"{name}:{line}: {word}: use {better}")
            count += 1
    return count


def faults(name: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Yields line, word and replacement for each fault of a file."""
    if Path(name).suffix == ".py" and name.startswith("zoo/") and Path(name).stem in MODULES:
        yield 1, Path(name).stem, "the module's name in the field"
    for number, line in enumerate(text.splitlines(), 1):
        minds = {} if name.startswith("tests/") and not line.startswith("def test_") else MINDS
        for banned, letters in ((WORDS | minds, "[A-Za-z]"), (IDENTIFIERS, r"\w")):
            for pattern, better in banned.items():
                for found in re.finditer(rf"(?<!{letters})({pattern})(?!{letters})", line, re.IGNORECASE):
                    yield number, found.group(), better
    if name.endswith(".py") and not name.startswith("tests/"):
        for line, opening in openings(ast.parse(text)):
            yield line, opening, "a verb, or the name of the thing"
        for line, function in without_arguments(ast.parse(text)):
            yield line, f"the docstring of {function}", "a section Args with every argument, as it has other sections"
    if name.endswith(".py") and name.startswith("zoo/"):
        banned = NAMES | NAMES_OF.get(name, {})
        for line, word in defined(ast.parse(text)):
            if word in banned:
                yield line, word, banned[word]


def openings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and first word of each docstring that begins with a banned one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            found = re.match(OPENINGS, ast.get_docstring(node) or "")
            if found:
                yield node.body[0].lineno, found.group()


def without_arguments(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and name of each function whose docstring has sections but none of its arguments.

    Ruff's D417 and DOC102 compare the section with the arguments.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]]
            sections = re.findall(r"^(Args|Returns|Raises|Yields):", ast.get_docstring(node) or "", re.MULTILINE)
            if sections and "Args" not in sections and set(names) - {"self", "cls"}:
                yield node.lineno, node.name


def defined(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and name of each class, function, argument and field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
