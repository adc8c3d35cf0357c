"""Writes folders of images of subjects that no scene has, see `zoo.scenes.subjects`, with captions.

    python -m benchmarks.subjects --out subjects --world pairs --size 32

Each folder, `square_red_cyan` and the like, has images, captions beside them, class.txt, and subject.json for
`python -m zoo score_subject`. An image shows the subject alone; no two show the same scene.
"""

import argparse
from pathlib import Path

from zoo import media
from zoo.errors import UserError, exit_on_user_error
from zoo.scenes import subjects
from zoo.scenes.world import world_named


def write(folder: Path, subject: subjects.Subject, world: str, size: int, count: int) -> None:
    """Writes the folder of one subject."""
    folder.mkdir(parents=True)
    (folder / "class.txt").write_text(f"{subject.shape}\n")
    (folder / "subject.json").write_text(subject.to_json())
    for number, scene in enumerate(subjects.scenes(subject, world, count)):
        media.save(folder / f"{number}.png", subjects.render(subject, scene, size))
        (folder / f"{number}.txt").write_text(subjects.describe(scene))


def main():
    """Writes the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--world", default="pairs", help="world of the scenes, without motion")
    parser.add_argument("--size", type=int, default=32, help="pixels along a side")
    parser.add_argument("--num", type=int, default=5, help="images of each subject")
    chosen = parser.parse_args()
    world = world_named(chosen.world)
    if chosen.num < 1 or chosen.size < world.smallest_image or world.moves or any(world.jitter.values()):
        raise UserError(
            f"--world is one without motion and jitter, --size at least {world.smallest_image} and --num at least 1, "
            f"got {chosen.world}, {chosen.size} and {chosen.num}"
        )
    if chosen.num > len(subjects.alone(subjects.SUBJECTS[0], chosen.world)):
        raise UserError(f"--num {chosen.num} is more than there are scenes of a subject alone: give fewer")
    for subject in subjects.SUBJECTS:
        folder = Path(chosen.out) / f"{subject.shape}_{subject.left}_{subject.right}"
        if folder.exists():
            raise UserError(f"--out: {folder} is there already: remove it, or name another folder")
        write(folder, subject, chosen.world, chosen.size, chosen.num)
        print(folder)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
