"""Trains a recipe.

python train.py --config configs/diffusion.py:demo --workdir runs/demo
"""

from zoo.commands.train import COMMAND

if __name__ == "__main__":
    COMMAND.run()
