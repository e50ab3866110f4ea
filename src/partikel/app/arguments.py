"""The command line of a function: its signature gives the options, its docstring and types the help.

cyclopts splits the line, finds names and lays the help out; what a text means is decided by the type that
it is for (:mod:`partikel.app.reading`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    Token,
    UnknownOptionError,
    UnusedCliTokensError,
)

from partikel.app.reading import given, listed, typed
from partikel.errors import ConfigError, nearest
from partikel.errors.checks import (
    check,
    fits,
    options_of,
    parts_of,
    settings_in,
    shown,
    types_of,
    words_of,
)
from partikel.extensions import Registry

SHORT = {"n": "-n", "out": "-o"}
"""Names of one letter."""
LONG = {"own_data": "--data", "from_": "--from"}
"""Names that an argument cannot have, as a group of settings or Python has them."""
OPTIONS = "Options"
"""The heading of a command's own."""
VALUE = {"metavar": "VALUE"} if "metavar" in inspect.signature(Parameter).parameters else {}
"""What follows a name in the help: the cyclopts of Python 3.10 cannot be told."""
Places = tuple[list[Any], dict[str, Any]]


@dataclass(frozen=True)
class Option:
    """What can be given on a command line.

    Attributes:
        key: its name, with dots where it lies in settings within settings.
        hint: its type.
        value: what it is unless given; ``inspect.Parameter.empty`` where it must be.
        about: a sentence for the help.
        place: whether it is given by its place, not by its name.
        group: the heading that it stands under.
    """

    key: str
    hint: Any
    value: Any = inspect.Parameter.empty
    about: str = ""
    place: bool = False
    group: str = OPTIONS

    @property
    def name(self) -> str:
        """As it is written on the line."""
        return LONG.get(self.key, f"--{self.key.replace('_', '-')}")

    @property
    def flag(self) -> bool:
        """Whether it needs no value: what is false of a command's own, but no setting."""
        return self.value is False and self.group == OPTIONS

    @property
    def several(self) -> bool:
        """Whether several words are given by their place."""
        kinds = [typing.get_origin(each) for each in options_of(self.hint)]
        return self.place and list in kinds

    def parameter(self, groups: Mapping[str, Group]) -> inspect.Parameter:
        """What cyclopts is told: texts, as they stand on the line, and flags."""
        kinds = inspect.Parameter
        told: dict[str, Any] = {"help": self._help(), "show_default": False}
        if not self.place:
            named = (self.name, SHORT[self.key]) if self.key in SHORT else self.name
            told |= {"group": groups[self.group], "name": named, **({} if self.flag else VALUE)}
            kind = kinds.KEYWORD_ONLY
        else:
            kind = kinds.VAR_POSITIONAL if self.several else kinds.POSITIONAL_ONLY
        must = self.value is kinds.empty or self.several  # several may be none
        default = kinds.empty if must else (False if self.flag else None)
        annotation = Annotated[bool if self.flag else str, Parameter(**told)]
        key = self.key.replace(".", "__")
        return kinds(key, kind, default=default, annotation=annotation)

    def _help(self) -> str:
        kinds = [parts_of(each)[0] for each in options_of(self.hint)]
        told = any(kind in (int, float, bool) or typing.get_origin(kind) for kind in kinds)
        told = told and not (self.flag or self.place)
        words = words_of(self.hint, "nothing").removesuffix(" or nothing") if told else ""
        value = "" if self.flag or self.value in (inspect.Parameter.empty, None) else self.value
        notes = [words] * (words not in ("", "a list of a word"))
        notes += [f"default: {listed(value)}"] if value != "" else []
        return f"{self.about} [{'; '.join(notes)}]" if notes else self.about


def options_in(
    of: Any, values: Any = None, prefix: str = "", group: str = OPTIONS, told: bool = True
) -> list[Option]:
    """The options of a command, or the settings of a dataclass with those of settings within it.

    Args:
        of: a function, whose arguments before "/" are given by their place, or a dataclass.
        values: a dataclass's instance, whose values stand in for the defaults.
        prefix: of the names.
        group: the heading.
        told: whether with what docstrings say of them.
    """
    about, hints = _about(of) if told else {}, types_of(of)
    found = []
    if inspect.isfunction(of):
        parameters = inspect.signature(of).parameters.values()
        members = [(p.name, p.default, p.kind) for p in parameters if p.kind is not p.VAR_KEYWORD]
    else:
        now, kind = of if values is None else values, inspect.Parameter.KEYWORD_ONLY
        members = [(f.name, getattr(now, f.name, None), kind) for f in dataclasses.fields(of)]
    for key, value, kind in members:
        path = f"{prefix}{key}"
        place = kind is inspect.Parameter.POSITIONAL_ONLY
        inner = settings_in(hints[key])
        if inner is None or type(None) in options_of(hints[key]):
            value = None if dataclasses.is_dataclass(value) else value
            found.append(Option(path, hints[key], value, about.get(key, ""), place, group))
        if inner is not None:
            more = value if isinstance(value, inner) else None
            said = re.split(r"[:;.]", about.get(key, ""))[0]
            nested = not inspect.isfunction(of)
            title, deeper = (f"{path}: {said}", f"{path}.") if nested else (group, prefix)
            found += options_in(inner, more, deeper, title, told)
    return found


def parse(name: str, command: Callable[..., Any], tokens: Sequence[str]) -> Places:
    """The arguments of a command, each of its type and in its range, by place and by name.

    Options stand anywhere on the line. What is true or false needs no value. Where the command takes
    ``**settings``, every other option is one, nested where its name has dots.

    Raises:
        ConfigError: for an option that there is not, a value that is missing, or one that is wrong.
    """
    options = options_in(command, told=False)
    found = _split(name, command, options, tokens)
    said = f"of 'partikel {name}'"
    places: list[Any] = []
    values: dict[str, Any] = found.pop("settings", {})
    for option in options:
        text = found.get(option.key)
        if text is None:
            if option.value is inspect.Parameter.empty:
                raise _needs_more(name)
        elif option.place:
            text = list(text) if isinstance(text, tuple) else text
            check(text, option.hint, f"'{option.key}' {said}")
            places.append(text)
        else:
            values[option.key] = text if isinstance(text, bool) else _value(option, text, said)
    return places, _gathered(command, values)


def print_help(name: str, command: Callable[..., Any], more: Sequence[Option] = ()) -> None:
    """Print the help of a command, and of settings beside its own options."""
    from cyclopts.help import DefaultFormatter, PanelSpec, TableSpec
    from rich.box import SIMPLE

    panels, rows = PanelSpec(box=SIMPLE, padding=(0, 0)), TableSpec(padding=(0, 2, 0, 0))
    plain = DefaultFormatter(panel_spec=panels, table_spec=rows)
    text = inspect.cleandoc(command.__doc__ or "").split("Args:")[0].strip()
    text = "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))
    options = [*options_in(command), *more]
    usage = f"Usage: partikel {name} [OPTIONS]"
    for each in options:
        word = each.key.upper() + "..." * each.several
        if each.place:
            usage += f" {word}" if each.value is inspect.Parameter.empty else f" [{word}]"
    told = {"usage": usage, "help": text, "help_format": "plaintext", "help_formatter": plain}
    _app(name, command, options, **told).help_print([])


def _split(
    name: str, command: Callable[..., Any], options: Sequence[Option], tokens: Sequence[str]
) -> dict[str, Any]:
    """The texts of a line, by the keys that they are for."""
    app = _app(name, command, options)
    flags = {option.name for option in options if option.flag}
    rest = list(tokens)
    for at in range(len(rest) - 2, -1, -1):  # a flag may have a value all the same
        if rest[at].replace("_", "-") in flags and rest[at + 1].lower() in ("true", "false"):
            rest[at : at + 2] = [f"{rest[at]}={rest[at + 1]}"]
    try:
        _, bound, _ = app.parse_args(rest, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise _refusal(name, options, error) from error
    except AttributeError as error:  # cyclopts nests names
        raise ConfigError(
            "a group of settings is given whole or one by one: leave out --key or --key.more."
        ) from error
    found = dict(bound.arguments)
    if "settings" in found:
        found["settings"] = {k.replace("-", "_"): v for k, v in found["settings"].items()}
    return found


def _app(name: str, command: Callable[..., Any], options: Sequence[Option], **told: Any) -> App:
    """The line of a command as cyclopts knows it."""
    titles = dict.fromkeys(option.group for option in options)
    groups = {title: Group(title, sort_key=number) for number, title in enumerate(titles)}
    parameters = [option.parameter(groups) for option in options]
    parameters.sort(key=lambda each: each.kind)
    for each in inspect.signature(command).parameters.values():
        if each.kind is each.VAR_KEYWORD:
            hidden = Annotated[Any, Parameter(show=False)]
            parameters.append(inspect.Parameter("settings", each.kind, annotation=hidden))

    def stated(*_: Any, **__: Any) -> None: ...

    stated.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    stated.__annotations__ = {each.name: each.annotation for each in parameters}
    app = App(
        name=f"partikel {name}",
        help_flags=(),
        version_flags=(),
        default_parameter=Parameter(
            converter=_kept, negative=(), allow_repeating=True, json_list=False, json_dict=False
        ),
        result_action="return_value",
        **told,
    )
    app.default(stated)
    return app


def _kept(hint: Any, tokens: Any) -> Any:
    """The text of an option as it stands, the last one where there are several; nested settings read."""
    if isinstance(tokens, Mapping):
        # whatever the cyclopts of Python 3.10 makes of their type
        return {key.replace("-", "_"): _kept(Any, each) for key, each in tokens.items()}
    token: Token = tokens[-1]
    if token.keyword and not token.value.strip():  # YAML would read none
        raise ConfigError(f"{token.keyword} needs a value, got an empty word: leave it out.")
    return given(token.value, token.keyword or "") if hint is Any else token.value


def _value(option: Option, text: str, said: str) -> Any:
    """The value of an option, from its text."""
    value = typed(given(text, option.name), option.hint)
    if not fits(value, option.hint):
        check(text, str, f"the option '{option.name}'")
        must = f"the option '{option.name}' {said} must be {words_of(option.hint)}"
        enclosed = f"[{text}]"
        one = fits(typed(given(enclosed, option.name), option.hint), option.hint)
        mend = f": write {option.name} {shown(enclosed)}" if one else ""
        raise ConfigError(f"{must}, got {shown(value)}{mend}.")
    return value


def _gathered(command: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values with those of a dataclass of options in one."""
    for key, hint in types_of(command).items():
        inner = settings_in(hint)
        if inner is not None:
            names = [f.name for f in dataclasses.fields(inner) if f.name in values]
            values[key] = inner(**{each: values.pop(each) for each in names})
    return values


def _refusal(name: str, options: Sequence[Option], error: CycloptsError) -> ConfigError:
    """What is wrong with a line, in a sentence."""
    option = "" if error.argument is None else error.argument.name
    if isinstance(error, MissingArgumentError):
        if not option.startswith("-"):
            return _needs_more(name)
        if "[" in option:  # of the recipe's settings, which cyclopts knows no names of
            option = getattr(error, "keyword", None) or "the last option"
        return ConfigError(f"{option} needs a value: write {option} VALUE.")
    if isinstance(error, CoercionError) and error.token is not None:
        value = shown(error.token.value)
        return ConfigError(
            f"the option '{option}' of 'partikel {name}' must be true or false, got {value}."
        )
    if isinstance(error, UnknownOptionError):
        wrong = error.token.keyword or error.token.value
        near = nearest(wrong, [each.name for each in options if not each.place])
        return ConfigError(f"'partikel {name}' has no option {wrong}: {near}")
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        hint = "write --key value" if name == "train" else f"see 'partikel {name} --help'"
        return ConfigError(f"'{error.unused_tokens[0]}' belongs to no setting: {hint}.")
    return ConfigError(f"'partikel {name}': {' '.join(str(error).split())}")


def _needs_more(name: str) -> ConfigError:
    return ConfigError(f"'partikel {name}' needs more: see 'partikel {name} --help'.")


@functools.cache
def _about(of: Any) -> dict[str, str]:
    """What a docstring says of each argument or attribute, a class's bases included."""
    from docstring_parser import parse as parse_docstring  # only the help needs it

    found: dict[str, str] = {}
    for each in reversed(getattr(of, "__mro__", (of,))):
        told = parse_docstring(inspect.cleandoc(each.__doc__ or "")).params
        module = getattr(each, "__module__", "")
        found |= {p.arg_name: _plain(p.description or "", module) for p in told}
    return found


def _plain(text: str, module: str) -> str:
    """A docstring's text without its markup; what it names as data is listed."""

    def names(match: re.Match[str]) -> str:
        room, _, name = match[1].rpartition(".")
        found = getattr(importlib.import_module(room or module), name)
        others = found.others() if isinstance(found, Registry) else ()
        return ", ".join(map(str, (*found, *others)))

    text = re.sub(r":data:`~?([\w.]+)`", names, text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return " ".join(text.replace("``", "").split())
