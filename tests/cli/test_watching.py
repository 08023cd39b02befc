import io

from onnxbrecq_cli.progress import LINE_SECONDS, Bars, Lines, _bars
from rich.console import Console


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_few_seconds_and_at_each_stage_end() -> None:
    clock, lines = Clock(), []
    watch = Lines(lines.append, clock)
    for done in range(9):
        clock.now = done * LINE_SECONDS / 2
        watch("reconstruct", done, 8, f"block {done}")
    assert lines == [
        "reconstruct 2/8 block 2 (5 s)",
        "reconstruct 4/8 block 4 (10 s)",
        "reconstruct 6/8 block 6 (15 s)",
        "reconstruct 8/8 block 8 (20 s)",
    ]


def test_short_stages_show_their_end() -> None:
    lines: list[str] = []
    watch = Lines(lines.append, Clock())
    for stage in ("calibrate", "validate"):
        watch(stage, 1, 2)
        watch(stage, 2, 2)
    assert lines == ["calibrate 2/2 (0 s)", "validate 2/2 (0 s)"]


def test_control_characters_of_a_name_are_not_written() -> None:
    lines: list[str] = []
    Lines(lines.append, Clock())("a", 1, 1, "\x1b[2J")
    assert lines == [r"a 1/1 \x1b[2J (0 s)"]


def test_names_are_not_read_as_markup() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with _bars(console) as progress:
        Bars(progress)("reconstruct", 1, 2, "/block[0]/[/red]")
    assert "/block[0]/[/red]" in out.getvalue()
