"""The explorer: one page on which particles move, for a browser, without a network or a server.

Its script is written as ES modules beside this file. They are joined in the order of their imports into
one inline script, as pages opened from a disk may not import files.
"""

from __future__ import annotations

import os
import re
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from partikel import __version__
from partikel.app.explorer.runs import told
from partikel.app.runs import Run
from partikel.app.show import pages, plots
from partikel.errors import ConfigError
from partikel.files import json_text, write_whole

HERE = Path(__file__).parent
_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:const|class|function) (\w+))", re.MULTILINE)


def write_explorer(path: str | Path, runs: Sequence[Run] = ()) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: the .html file.
        runs: to look at on it.

    Returns:
        The file.

    Raises:
        ConfigError: for another suffix, a run that cannot be shown, or a place that cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"a page cannot be written to '{path.name}': use .html.")
    held = json_text([told(run) for run in runs]).replace("<", "\\u003c")  # ends no script
    environment = Environment(autoescape=True, loader=FileSystemLoader(HERE))
    page = environment.get_template("page.html").render(
        version=__version__,
        style=Markup(_style()),
        script=Markup(joined_script()),
        runs=Markup(held),
    )
    try:
        write_whole(path, page)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"the page cannot be written to {path} ({why}): name another file with --out."
        ) from error
    return path


def opened(path: Path) -> bool:
    """Open a page in the user's browser; whether there is a screen for one."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not any(map(os.environ.get, screens)):
        return False  # browsers of the terminal would take it over
    try:
        return webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        return False


def joined_script() -> str:
    """All modules in one, each a function that is called once, after those that it imports."""
    texts: dict[str, str] = {}

    def visit(name: str) -> None:
        text = (HERE / f"{name}.js").read_text(encoding="utf-8")
        for _, needed in _IMPORT.findall(text):
            if needed not in texts:
                visit(needed)
        names = ", ".join(_EXPORT.findall(text))
        text = _EXPORT.sub("", _IMPORT.sub(r"const \1 = modules.\2;\n", text))
        texts[name] = f"modules.{name} = (() => {{\n{text}return {{ {names} }};\n}})();"

    visit("main")
    return "\n".join(["const modules = {};", *texts.values()])


def _style() -> str:
    """The colours of all pages, light and dark, and the sheet of this one."""
    light, dark = pages.colours()
    colours = f"{light} --critic: {plots.SERIES[0]}; --score: {plots.SERIES[1]};"
    sheet = (HERE / "explorer.css").read_text(encoding="utf-8").split("\n", 1)[1]
    return (
        f":root {{ {colours} color-scheme: light dark; }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f":root[data-theme=dark] {{ {dark} color-scheme: dark; }}\n"
        f":root[data-theme=light] {{ color-scheme: light; }}\n{sheet}"
    )
