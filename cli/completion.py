"""onnxbrecq completion: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class

from .command import Command


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks of errors.")
@click.pass_context
def completion(ctx: click.Context, /, *, shell: str, verbose: bool) -> None:
    """Prints the completion script of SHELL: bash, zsh or fish.

    In bash: eval "$(onnxbrecq completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    program = ctx.find_root().command
    click.echo(kind(program, {}, "onnxbrecq", "_ONNXBRECQ_COMPLETE").source())
