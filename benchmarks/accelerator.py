"""Measures every family on one accelerator within nine minutes, then trains diffusion there for what is left of them.

    python -m benchmarks.accelerator --out docs/results/accelerator                on a GPU
    python -m benchmarks.accelerator --out /tmp/rehearsal --rehearse               the same with tiny recipes, anywhere

Each row is a program of its own, one after the other, so that a family that fails costs its own row and memory is that
of one family. `report.json`, `report.md` and `log.txt` are written after each row: a run that is cut keeps what it has.

    comparison   the diffusion transformer against the same in PyTorch (`benchmarks/torch_twin.py`): its training step
                 with torch.compile, and a diffusers sampling loop
    training     `python -m zoo bench` of each family's accelerator recipe, and of diffusion in float32 and without
                 fused attention
    result       diffusion on scenes at 32 px, trained with `train.py`, scored with `python -m zoo score`, and a grid
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

DIFFUSION = "configs/diffusion.py"
# Name of the row -> arguments of `zoo bench`, in which {examples} stands for a number.
RECIPES = {
    "diffusion": [DIFFUSION],
    "MeanFlow": ["configs/mean_flow.py"],
    "VAE": ["configs/vae.py"],
    "TarFlow": ["configs/flow.py"],
    "GAN": ["configs/gan.py"],
    "Jet": ["configs/flow.py:jet"],
    "autoencoder": ["configs/vae.py:autoencoder"],
    "video and images": [
        "configs/video.py:images",
        "--config.data.source=scenes/video?fps=4&examples={examples}",
        "--config.data.images=scenes/video?examples={examples}",
    ],
    "stage of a cascade": [
        "configs/upsample.py:space",
        "--config.data.source=scenes/video?fps=4&examples={examples}",
        "--config.data.size=64",
    ],
    "patches": ["configs/patches.py"],
    "masked with a critic": [
        "configs/tokens.py:masked,critic",
        "--config.data.codes=pixels",
        "--config.method.base.net.patch_size=4",
        "--config.method.critic.patch_size=4",
    ],
    "autoregressive, 16 px": [
        "configs/tokens.py:autoregressive",
        "--config.data.codes=pixels",
        "--config.data.size=16",
    ],
    "continuous": ["configs/tokens.py:continuous", "--config.data.latents=", "--config.method.net.patch_size=4"],
    "diffusion, attention by XLA": [DIFFUSION, "--config.method.net.attention=xla"],
    "diffusion, float32": [DIFFUSION, "--config.dtype=float32"],
    "diffusion with a critic": [f"{DIFFUSION}:critic"],
    "CLIP": ["configs/clip.py", "--config.dtype=bfloat16", "--config.data.batch_size=256"],
}
COLUMNS = {
    "parameters": ("parameters", "{:,.0f}", 1),
    "first step, s": ("to_first_step_s", "{:.1f}", 1),
    "compiling, s": ("compile_s", "{:.1f}", 1),
    "step, ms": ("step_s", "{:.2f}", 1e3),
    "images/s": ("images_per_s", "{:,.0f}", 1),
    "TFLOP/s": ("flops_per_s", "{:.1f}", 1e-12),
    "share of matmul peak": ("share_of_matmul_peak", "{:.1%}", 1),
    "memory, MiB": ("peak_memory_mib", "{:,.0f}", 1),
}
SCORING_SECONDS = 75  # kept for sampling and scoring what was trained
STARTING_SECONDS = 45  # of a training run, before its first step
LINEAR = "--config.method.time_shift=1."  # the twin has no other


class Report:
    """Rows as they come, kept in a folder."""

    def __init__(self, chosen: argparse.Namespace):
        self.folder, self.rehearse = chosen.out, chosen.rehearse
        self.recipes, self.row_seconds = chosen.recipe or RECIPES, chosen.row_seconds
        self.end = time.monotonic() + 60 * chosen.minutes
        self.rows = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "log.txt").write_text("")

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()

    def run(self, name: str, words: list[str], seconds: float | None = None, result: Path | None = None) -> None:
        """Runs a program, `python WORDS`, as a row.

        Args:
          name: name of the row.
          words: arguments of python.
          seconds: after which the program is stopped; by default those of every row.
          result: JSON file that it writes, of which the last line counts; by default what it prints last.
        """
        began = time.monotonic()
        output, code = run_program([sys.executable, *words], min(seconds or self.row_seconds, self.left))
        row = last_json(result.read_text() if result and result.exists() else output)
        row |= {"command": " ".join(["python", *words]), "exit_code": code, "wall_s": time.monotonic() - began}
        self.rows[name] = row
        with (self.folder / "log.txt").open("a") as log:
            log.write(f"==== {name}: {' '.join(words)}\n{output.replace(chr(13), chr(10))[-20_000:]}\n")
        self.write()
        print(f"{self.left:5.0f} s left | {name} | {json.dumps(row)[:500]}", flush=True)

    def write(self) -> None:
        """Writes all rows."""
        (self.folder / "report.json").write_text(json.dumps(self.rows, indent=2))
        (self.folder / "report.md").write_text(markdown(self.rows))


def run_program(command: list[str], seconds: float) -> tuple[str, int]:
    """Returns what a program printed, and its exit code; after `seconds` it gets SIGTERM, and soon SIGKILL."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for patience, stop in ((max(seconds, 1), signal.SIGTERM), (15, signal.SIGKILL), (15, None)):
        try:
            return process.communicate(timeout=patience)[0], process.returncode
        except subprocess.TimeoutExpired:
            if stop is not None:
                process.send_signal(stop)
    return "", -1


def last_json(text: str) -> dict:
    """Returns the object that begins the last line to begin with a brace; an empty one where there is none."""
    start = ("\n" + text).rfind("\n{")
    try:
        return {} if start < 0 else json.JSONDecoder().raw_decode(text[start:])[0]
    except json.JSONDecodeError:
        return {}


def markdown(rows: dict[str, dict]) -> str:
    """Returns the tables."""
    trained = {name: row for name, row in rows.items() if "step_s" in row}
    first = next(iter(trained.values()), {})
    lines = [f"{first.get('machine', '')}, jax {first.get('jax', '')}", ""]
    lines += ["| recipe | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for name, row in trained.items():
        cells = (form.format(row[key] * scale) for key, form, scale in COLUMNS.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, row in rows.items():
        if name not in trained:
            content = {key: value for key, value in row.items() if key != "command"}
            lines += ["", f"{name}: `{row['command']}`", "", "```", json.dumps(content, indent=2), "```"]
    return "\n".join(lines) + "\n"


def measure_training(report: Report) -> None:
    """Bench of every recipe, or of those that are named."""
    examples = "64" if report.rehearse else "2000"
    for name in report.recipes:
        spec, *changes = RECIPES[name]
        words = ["-m", "zoo", "bench", "--config", tiny(spec) if report.rehearse else spec]
        words += ["--config.data.size=32", f"--config.data.source=scenes/full?examples={examples}"]
        words += [change.format(examples=examples) for change in changes]  # the last one of two sources counts
        report.run(name, [*words, "--part=step", f"--seconds={0.1 if report.rehearse else 3}"])


def compare(report: Report) -> None:
    """The PyTorch twin and the diffusers loop."""
    spec = tiny(DIFFUSION) if report.rehearse else DIFFUSION
    for what in ("training", "sampling"):
        words = ["-m", "benchmarks.torch_twin", "--config", spec, "--config.dtype=bfloat16", LINEAR]
        report.run(
            f"against PyTorch, {what}",
            [*words, f"--compare={what}", "--steps=20", "--rounds=3"],
            1.6 * report.row_seconds,
        )


def train(report: Report) -> None:
    """Trains diffusion for the time that is left, scores it and samples a grid."""
    workdir, spec = report.folder / "run", tiny(DIFFUSION) if report.rehearse else DIFFUSION
    row = report.rows.get("diffusion", {})
    seconds = report.left - SCORING_SECONDS - STARTING_SECONDS
    steps = 2 if report.rehearse else max(10, int(0.8 * seconds / row.get("step_s", 0.03)) // 10 * 10)
    config = {"steps": steps, "log_every": max(1, steps // 20), "checkpoint_every": steps, "grid_every": 0}
    words = ["train.py", "--config", spec, f"--workdir={workdir}"]
    words += [f"--config.loop.{key}={value}" for key, value in config.items()]
    report.run("train", words, report.left - SCORING_SECONDS, workdir / "metrics.jsonl")
    num = "6" if report.rehearse else "1000"
    prompts = ["--prompts_file=configs/demo_prompts.txt", f"--out={report.folder / 'samples.png'}"]
    report.run("samples", ["sample.py", f"--workdir={workdir}", *prompts])
    for split in ("test_seen", "test_unseen"):
        out = workdir / f"{split}.json"
        words = [f"--num={num}", f"--split={split}", "--measures=oracle", f"--out={out}"]
        report.run(f"score, {split}", ["-m", "zoo", "score", f"--workdir={workdir}", *words], result=out)


def tiny(spec: str) -> str:
    """Returns the spec of the recipe that tests use."""
    return spec + (",test" if ":" in spec else ":test")


PARTS = {"comparison": compare, "training": measure_training, "result": train}


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--minutes", type=float, default=9.0, help="minutes in all")
    parser.add_argument("--rehearse", action="store_true", help="tiny recipes, on any device")
    parser.add_argument("--part", choices=PARTS, action="append", help="what to do; may be given several times")
    parser.add_argument(
        "--recipe", choices=RECIPES, action="append", help="which to measure; may be given several times"
    )
    parser.add_argument("--row_seconds", type=float, default=75.0, help="seconds after which a row is given up")
    chosen = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # memory is then what was used
    report = Report(chosen)
    for part, do in PARTS.items():
        if part in (chosen.part or PARTS):
            do(report)


if __name__ == "__main__":
    main()
