"""Completions of command lines for bash, zsh and fish."""

from collections.abc import Callable, Iterable, Iterator

from kata_runtime.install.commands import Command, Option, Values

__all__ = ["SHELLS"]

# Asked of the program itself; nothing where the user may not.
_SANDBOXES = "kata-runtime list --quiet 2>/dev/null"


def _function(command: Command) -> str:
    return "_" + command.name.replace("-", "_")


def _at(command: Command) -> str:
    """Where in the command line we are, as the scripts call it: "" or /trace/show."""
    return "".join(f"/{word}" for word in command.words[1:])


def _valued(command: Command) -> Iterator[tuple[str, Option]]:
    """Where and after which word a value follows."""
    for part in command.all():
        for option in part.options:
            if option.values is not Values.NONE:
                for name in option.names:
                    yield f"{_at(part)} {name}", option


def _place(command: Command) -> Option | None:
    """What stands by its place; several of a command are of one kind."""
    return command.places[0] if command.places else None


def _bash_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _alternatives(patterns: Iterable[str]) -> str:
    """For bash's and zsh's case."""
    return "|".join(map(_bash_quoted, patterns)) or "''"


def _kinds(command: Command) -> dict[tuple[Values, tuple[str, ...]], list[str]]:
    """Words before a value, by what it may be."""
    found: dict[tuple[Values, tuple[str, ...]], list[str]] = {}
    for word, option in _valued(command):
        found.setdefault((option.values, option.choices), []).append(word)
    return found


def _bash(command: Command) -> str:
    paths = [_at(part) for part in command.all()][1:]
    lines = [
        f"# bash completion for {command.name}, made from its --help",
        f"{_function(command)}() {{",
        "    local i at= words= current=${COMP_WORDS[COMP_CWORD]}",
        "    COMPREPLY=()",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        "        # The container's command.",
        "        if [[ ${COMP_WORDS[i]} == -- ]]; then compopt -o default; return; fi",
        '        case "$at ${COMP_WORDS[i]}" in',
        f"        {_alternatives(word for word, _ in _valued(command))})",
        "            ((++i < COMP_CWORD)) && continue",
    ]
    for (values, choices), words in _kinds(command).items():
        lines += [f'            case "$at ${{COMP_WORDS[COMP_CWORD - 1]}}" in {_alternatives(words)})']
        lines += [f"                {_bash_values(values, choices)}; return ;;", "            esac"]
    lines += ["            ;;", "        esac", '        case "$at/${COMP_WORDS[i]}" in']
    lines += [
        f"        {_alternatives(paths)}) at+=/${{COMP_WORDS[i]}} ;;",
        "        esac",
        "    done",
        "    case $at in",
    ]
    for part in command.all():
        place = _place(part)
        words = [*(c.name for c in part.commands), *(n for o in part.options for n in o.names)]
        words += place.choices if place is not None else ()
        lines += [f"    {_bash_quoted(_at(part))})", f"        words={_bash_quoted(' '.join(words))}"]
        if place is not None and place.values is Values.FILES:
            lines += ["        compopt -o default"]
        elif place is not None and place.values is Values.SANDBOXES:
            lines += [f'        words+=" $({_SANDBOXES})"']
        lines += ["        ;;"]
    lines += ["    esac", '    COMPREPLY=($(compgen -W "$words" -- "$current"))', "}"]
    return "\n".join([*lines, f"complete -F {_function(command)} {command.name}", ""])


def _bash_values(values: Values, choices: tuple[str, ...]) -> str:
    if choices:
        return f'COMPREPLY=($(compgen -W {_bash_quoted(" ".join(choices))} -- "$current"))'
    if values is Values.FILES:
        return "compopt -o default"
    if values is Values.SANDBOXES:
        return f'COMPREPLY=($(compgen -W "$({_SANDBOXES})" -- "$current"))'
    return "true"


def _zsh(command: Command) -> str:
    paths = [_at(part) for part in command.all()][1:]
    function = _function(command)
    lines = [
        f"#compdef {command.name}",
        f"# Made from {command.name} --help.",
        f"{function}() {{",
        "    local i at=",
        "    local -a commands options",
        "    for ((i = 2; i < CURRENT; i++)); do",
        "        # The container's command.",
        "        if [[ $words[i] == -- ]]; then _files; return; fi",
        '        case "$at $words[i]" in',
        f"        ({_alternatives(word for word, _ in _valued(command))})",
        "            if (( ++i < CURRENT )); then continue; fi",
    ]
    for (values, choices), words in _kinds(command).items():
        lines += [f'            case "$at $words[CURRENT-1]" in ({_alternatives(words)})']
        lines += [f"                {_zsh_values(values, choices)}; return ;;", "            esac"]
    lines += ["            ;;", "        esac", '        case "$at/$words[i]" in']
    lines += [f"        ({_alternatives(paths)}) at+=/$words[i] ;;", "        esac", "    done", "    case $at in"]
    for part in command.all():
        place = _place(part)
        commands = [_described(c.name, c.help) for c in part.commands]
        options = [_described(name, option.help) for option in part.options for name in option.names]
        lines += [f"    ({_bash_quoted(_at(part))})"]
        lines += [f"        commands=({' '.join(commands)})", f"        options=({' '.join(options)})"]
        if place is not None and (place.choices or place.values in (Values.FILES, Values.SANDBOXES)):
            lines += [f"        if [[ $words[CURRENT] != -* ]]; then {_zsh_values(place.values, place.choices)}; fi"]
        lines += ["        ;;"]
    lines += [
        "    esac",
        "    if (( $#commands )) && [[ $words[CURRENT] != -* ]]; then _describe command commands; fi",
        "    if [[ $words[CURRENT] == -* ]]; then _describe option options; fi",
        "}",
    ]
    return "\n".join([*lines, f'{function} "$@"', ""])


def _described(name: str, says: str) -> str:
    return _bash_quoted(f"{name}:{' '.join(says.split())}")


def _zsh_values(values: Values, choices: tuple[str, ...]) -> str:
    if choices:
        return f"compadd -- {' '.join(map(_bash_quoted, choices))}"
    if values is Values.FILES:
        return "_files"
    return f"compadd -- $({_SANDBOXES})" if values is Values.SANDBOXES else "_message value"


def _fish(command: Command) -> str:
    program, at = command.name, f"__{command.name.replace('-', '_')}_at"
    paths = [_at(part) for part in command.all()][1:]
    lines = [
        f"# fish completion for {program}, made from its --help",
        f"function {at}",
        "    set -l at ''",
        "    set -l skip 0",
        "    for word in (commandline -opc)[2..-1]",
        "        if test $skip = 1",
        "            set skip 0",
        "            continue",
        "        end",
        "        # The container's command.",
        "        test $word = -- && return 1",
        '        switch "$at $word"',
        f"            case {' '.join(_fish_quoted(word) for word, _ in _valued(command)) or _fish_quoted('')}",
        "                set skip 1",
        "        end",
        '        switch "$at/$word"',
        f"            case {' '.join(map(_fish_quoted, paths)) or _fish_quoted('')}",
        '                set at "$at/$word"',
        "        end",
        "    end",
        '    test "$at" = "$argv[1]"',
        "end",
        f"complete -c {program} -f",
    ]
    for part in command.all():
        here = f"complete -c {program} -n {_fish_quoted(f'{at} {_fish_quoted(_at(part))}')}"
        lines += [f"{here} -a {c.name} -d {_fish_quoted(c.help)}" for c in part.commands]
        place = _place(part)
        if place is not None and (wanted := _fish_values(place)):
            lines += [f"{here} {wanted}"]
        for option in part.options:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            value = f" -r {_fish_values(option)}".rstrip() if option.value else ""
            lines += [f"{here} {names}{value} -d {_fish_quoted(option.help)}"]
    return "\n".join([*lines, ""])


def _fish_values(option: Option) -> str:
    if option.choices:
        return f"-a {_fish_quoted(' '.join(option.choices))}"
    if option.values is Values.FILES:
        return "-F"
    return f"-a {_fish_quoted(f'({_SANDBOXES})')}" if option.values is Values.SANDBOXES else ""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ") + "'"


# The script of each shell; its name where shells look for it is in `kata_runtime.install.items`.
SHELLS: dict[str, Callable[[Command], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
