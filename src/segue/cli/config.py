"""``segue config``: look at recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from segue import recipes
from segue.cli import vdna
from segue.cli.options import Overrides
from segue.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Look at recipes: show, validate, copy, convert, schema.")


@app.command("show")
def show(
    recipe: str,
    overrides: Overrides = None,
    why: Annotated[bool, typer.Option("--why", help="Say where each value comes from.")] = False,
) -> None:
    """The resolved recipe."""
    data, sources = recipes.collect(recipe, overrides or [])
    resolved = recipes.validate(data)
    if not why:
        print(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), end="")
        return
    for key, value in _leaves(resolved.model_dump(mode="json")):
        print(f"{key} = {json.dumps(value)}   # {_source(key, sources)}")


def _source(key: str, sources: dict[str, str]) -> str:
    parts = key.split(".")
    candidates = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    found = next((sources[c] for c in candidates if c in sources), None)
    children = next((s for k, s in sources.items() if k.startswith(key + ".")), None)
    return found or children or "default"


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [leaf for k, v in rows for leaf in _leaves(v, f"{prefix}.{k}" if prefix else str(k))]
    return inner or [(prefix, value)]


@app.command("validate")
def validate(recipe: str, overrides: Overrides = None) -> None:
    """Check a recipe; exit code 2 and every fault if it is wrong."""
    given = recipes.load(recipe, overrides or [])
    from segue.jobs.checks import check_settings

    check_settings(given)
    print(f"{recipe}: {len(given.stages)} stages, no faults")


@app.command("copy")
def copy(recipe: str, to: Path) -> None:
    """Copy a shipped recipe to a file of your own."""
    from segue.files import write_text

    if to.exists():
        raise UserError(f"{to} exists; choose another name")
    write_text(to, recipes.portable(recipe))
    print(to)


@app.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(help="training_pipeline.json or testing_pipeline.json.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Recipe to write; default: print it.")] = None,
) -> None:
    """Translate a JSON file of the vDNA project to a recipe."""
    if out is not None and out.exists():
        raise UserError(f"{out} exists; choose another name")
    given, recipe = vdna.opened(file, overrides or [], strict=False)
    if recipe is None:
        raise UserError(f"{file} asks for weak labels alone, which is no recipe: segue run {file}")
    text = yaml.safe_dump(given.recipe, sort_keys=False, allow_unicode=True, width=120)
    if out is None:
        print(text, end="")
        return
    from segue.files import write_text

    write_text(out, text)
    print(out)


@app.command("schema")
def schema() -> None:
    """JSON schema of a recipe, for editors."""
    from segue.config import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
