"""``sidlsg report``: one HTML file that shows a run, or compares several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli.options import path_option
from sidlsg.paths import user_path


def report(
    runs: Annotated[list[Path], typer.Argument(parser=user_path, metavar="RUN [RUN ...]", help="Run folders.")],
    out: Annotated[
        Path | None, path_option("File to write (default: RUN/report.html; report.html for several runs).")
    ] = None,
    png: Annotated[Path | None, path_option("Also write each plot as a PNG into this folder.")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page to this machine, and follow the runs until Ctrl-C.")
    ] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of --live (default: a free one).")] = None,
) -> None:
    """Show a run in one HTML file: a verdict, pictures over images seen, curves, settings. Several runs are compared.

    The file needs no network and no other file. A run that is under way, was resumed, is not scored or is damaged in places is
    shown as far as it goes.

    Examples: `sidlsg report runs/emoji-cpu-lsg-2` · `sidlsg report runs/* --out compared.html --png plots` ·
    `sidlsg report runs/my-run --live`
    """
    from sidlsg.errors import UsageError
    from sidlsg.files import write_text
    from sidlsg.report import curves
    from sidlsg.report import png as drawing
    from sidlsg.report.live import HOST, Live, server
    from sidlsg.report.page import build
    from sidlsg.report.reading import read_run
    from sidlsg.runs.folder import RunFolder
    from sidlsg.terminal import note

    def warn(text: str) -> None:
        note(text, "warning: ")

    if port is not None and not live:
        raise UsageError("--port is the port of --live; give both")
    if len({path.resolve() for path in runs}) < len(runs):
        raise UsageError("a run is given twice")
    target = out or (RunFolder(runs[0]).report if len(runs) == 1 else Path("report.html"))
    if target.is_dir():
        raise UsageError(f"--out {target} is a folder; give the name of a file")
    found = [read_run(path) for path in runs]
    if png is not None:
        png.mkdir(parents=True, exist_ok=True)
        for plot in [*curves.plots(found), curves.generator_loss(found)]:
            if plot.series:
                drawing.save(plot, png / f"{plot.key}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not live:
        write_text(target, build(found))
        for problem in [problem for run in found for problem in run.problems]:
            warn(problem)
        print(target)
        return
    following = Live(runs, target, warn)
    following.page()
    with server(following, port or 0) as serving:
        print(f"http://{HOST}:{serving.server_address[1]}/ (also {target}); Ctrl-C ends it", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print(f"ended; {target} is the report as it was last")
