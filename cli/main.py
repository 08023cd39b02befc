"""The program `onnxbrecq`."""

import sys
from collections.abc import Sequence

import click

from .bundle import bundle
from .command import FAILED, INTERRUPTED, interruptible, say
from .compare import compare
from .completion import completion
from .doctor import doctor
from .emit import emit
from .inspect import inspect
from .pareto import pareto
from .quantize import quantize
from .recipe import recipe
from .repair import repair
from .sensitivity import sensitivity
from .validate import validate
from .verify import verify


@click.group(
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(
    package_name="onnxbrecq", prog_name="onnxbrecq", message="%(prog)s %(version)s"
)
def program() -> None:
    """Quantizes ONNX models to 2, 3, 4 or 8 bits by block reconstruction.

    Exit status: 0 done, 1 an error, 2 wrong usage, 3 the gate was not met, 130 interrupted.
    """


program.add_command(quantize)
program.add_command(inspect)
program.add_command(validate)
program.add_command(sensitivity)
program.add_command(pareto)
program.add_command(emit)
program.add_command(compare)
program.add_command(bundle)
program.add_command(verify)
program.add_command(repair)
program.add_command(recipe)
program.add_command(completion)
program.add_command(doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the program, run with `arguments` (None: those of the process)."""
    for stream in (sys.stdout, sys.stderr):
        # A tensor's name need not fit the terminal's encoding.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with interruptible():
            status = program.main(arguments, prog_name="onnxbrecq", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "onnxbrecq"
        say(f"{error.format_message().rstrip('.')} (see {command} --help)")
        return error.exit_code
    except (
        click.Abort,
        KeyboardInterrupt,
    ):  # click's form of KeyboardInterrupt, outside of a command's body
        return INTERRUPTED
    except OSError as error:
        say(f"cannot write: {error.strerror or error}")
        return FAILED
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
