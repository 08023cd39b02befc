"""onnxbrecq recipe: every option there is, as a file to start from."""

import click

from .command import Command


@click.command(cls=Command)
@click.option("--markdown", is_flag=True, help="The page docs/recipe.md.")
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks of errors.")
def recipe(*, markdown: bool, verbose: bool) -> None:
    """Prints a recipe with every key, its default and its meaning."""
    import onnxbrecq  # noqa: PLC0415 -- --help must not wait for it

    click.echo(onnxbrecq.recipe_markdown() if markdown else onnxbrecq.recipe_toml(), nl=False)
