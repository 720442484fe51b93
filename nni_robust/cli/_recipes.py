"""``nni-robust recipes``: the ways to train that come with the library, and their sources."""

from __future__ import annotations

import argparse
from typing import Any

from nni_robust.cli._arguments import add_json
from nni_robust.cli._console import print_json, print_table

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "List the recipes of 'train --recipe NAME'; with NAME, print one: where it comes from, "
        "what its source says it reaches, and all settings."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe, or a YAML file")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """List all recipes, or print one."""
    from nni_robust.training import list_recipes

    if args.name is None:
        found = [_summary(name) for name in list_recipes()]
        if args.json:
            print_json(found)
        else:
            _table(found)
        return 0
    about = _summary(args.name)
    if args.json:
        print_json(about)
        return 0
    import yaml

    print(about["about"] + "\n")
    settings = {"threat": about["threat"], **about["settings"]}
    print(yaml.safe_dump(settings, sort_keys=False, width=100), end="")
    return 0


def _summary(name: str) -> dict[str, Any]:
    """One recipe, for JSON."""
    from nni_robust.config import as_mapping
    from nni_robust.training import load_recipe

    found = load_recipe(name)
    return {
        "name": found.name,
        "threat": None if found.threat is None else as_mapping(found.threat),
        "settings": as_mapping(found.recipe),
        "about": found.about,
    }


def _table(found: list[dict[str, Any]]) -> None:
    rows = []
    for recipe in found:
        settings = recipe["settings"]
        steps = settings["attack"]["steps"] * settings["replays"]
        rows.append(
            [
                recipe["name"],
                settings["loss"],
                str(settings["epochs"]),
                "" if settings["loss"] == "clean" else str(steps),
                "" if settings["averaging"] is None else f"{settings['averaging']:g}",
                settings["keep"],
            ]
        )
    print_table(["recipe", "loss", "epochs", "attack steps", "average", "keeps"], rows)
