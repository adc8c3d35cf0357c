"""Samples a run.

python sample.py --workdir runs/demo --prompt "a large red star at the top left on a grey background" --num 16
"""

from zoo.commands.sample import COMMAND

if __name__ == "__main__":
    COMMAND.run()
