"""Lists the families and their abilities.

python -m zoo families
"""

from zoo.commands.scaffold import Command
from zoo.evaluation.report import to_markdown
from zoo.families import FAMILIES, family_class
from zoo.method import ABILITIES, has_members


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    print(table())


def table() -> str:
    """Returns a Markdown table of the families: name, paper, recipe, abilities."""
    rows = []
    for name, family in FAMILIES.items():
        cls = family_class(name)
        own = [ability for ability in ABILITIES if has_members(cls, ability)]
        forwarded = [ability for ability in ABILITIES if ability in getattr(cls, "FORWARDS", ()) and ability not in own]
        words = [ability.__name__ for ability in own] + [f"base's {ability.__name__}" for ability in forwarded]
        paper = f"[{family.paper}](https://arxiv.org/abs/{family.paper})"
        rows.append([f"`{name}`", paper, f"`{family.recipe}`", ", ".join(words)])
    return to_markdown(["family", "arXiv", "recipe", "abilities"], rows)


COMMAND = Command(main)
