"""`runner completion`: a script for the shell, and the fast answers it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.cli.arguments import split_plain
from runner.config import paths
from runner.errors import EXIT_DONE, UserError, suggest

HELP = """\
usage: runner completion bash|zsh|fish

Prints a script that completes verbs, groups, options, keys and run directories. Load it from your
shell's start-up file, or try it in the running shell.

examples:
  source <(runner completion bash)
  runner completion zsh > ~/.zfunc/_runner
  runner completion fish > ~/.config/fish/completions/runner.fish
"""

DIRECTORIES = ":directories"
"""An answer by which the script lets the shell complete folders."""

BASH = r"""# completion of runner for bash: source <(runner completion bash)
_runner_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" current="" prefix="" answer
    local -a words
    read -ra words <<< "$line"
    if [[ "$line" == *[[:space:]] ]]; then words+=(""); fi
    current="${words[${#words[@]}-1]}"
    # bash splits words at '=' and ':', so what stands before the last one is already on the line
    if [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then prefix="${current%"${current##*=}"}"; fi
    COMPREPLY=()
    while IFS= read -r answer; do
        if [[ "$answer" == ":directories" ]]; then
            compopt -o filenames
            while IFS= read -r answer; do COMPREPLY+=("$answer"); done < <(compgen -d -- "$current")
        elif [[ -n "$answer" ]]; then
            [[ "$answer" == *[=./] ]] && compopt -o nospace
            COMPREPLY+=("${answer#"$prefix"}")
        fi
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
}
complete -F _runner_complete runner
"""
ZSH = r"""#compdef runner
# completion of runner for zsh: runner completion zsh > a folder of $fpath, as _runner
_runner() {
    local -a answers open closed
    local answer
    answers=("${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    for answer in $answers; do
        case "$answer" in
            :directories) _files -/ ;;
            *[=./]) open+=("$answer") ;;
            ?*) closed+=("$answer") ;;
        esac
    done
    (( $#open )) && compadd -Q -S '' -a open
    (( $#closed )) && compadd -Q -a closed
}
if [[ "$funcstack[1]" == "_runner" ]]; then _runner "$@"; else compdef _runner runner; fi
"""
FISH = r"""# completion of runner for fish: runner completion fish > ~/.config/fish/completions/runner.fish
function __runner_complete
    set -l words (commandline -opc)
    for answer in ($words[1] __complete $words[2..-1] (commandline -ct) 2>/dev/null)
        if test "$answer" = ":directories"
            __fish_complete_directories (commandline -ct)
        else
            echo $answer
        end
    end
end
complete -c runner -f -a '(__runner_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
HYDRA_FLAGS = ("--cfg", "--config-dir", "--config-name", "--help", "--hydra-help", "--info", "--multirun", "--resolve")
FLAGS = {
    "train": ("--dry-run", *HYDRA_FLAGS),
    "eval": HYDRA_FLAGS,
    "tune": ("--dry-run", *(flag for flag in HYDRA_FLAGS if flag != "--multirun")),
    "predict": (
        "--batch-size",
        "--checkpoint",
        "--columns",
        "--data-root",
        "--device",
        "--file",
        "--format",
        "--help",
        "--image",
        "--keep",
        "--pair",
        "--raw",
        "--size",
        "--tasks",
        "--text",
        "--to",
    ),
    "export": ("--checkpoint", "--data-root", "--help", "--license", "--to"),
    "rerun": ("--against", "--help", "--json", "--tolerance"),
    "merge": ("--dry-run", "--from", *HYDRA_FLAGS),
    "validate": ("--all", "--config-dir", "--help"),
    "data": ("--all", "--config-dir", "--from", "--help", "--json", "--keep", "--no-convert", "--root"),
    "ls": ("--config-dir", "--help", "--json"),
    "show": ("--config-dir", "--help"),
    "status": ("--help", "--json"),
    "sync": ("--dry-run", "--entity", "--help", "--project"),
    "report": (
        "--baseline",
        "--csv",
        "--delta-m",
        "--help",
        "--html",
        "--latex",
        "--markdown",
        "--metrics",
        "--panels-mb",
        "--split",
    ),
}


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    (shell,), _ = split_plain(arguments, "completion", ["bash|zsh|fish"])
    if shell not in SCRIPTS:
        raise UserError(f"there is no completion for '{shell}'", suggest(shell, SCRIPTS), "runner completion --help")
    print(SCRIPTS[shell], end="")
    return EXIT_DONE


def answer(words: Sequence[str]) -> int:
    """Print what may stand in the place of the last of the words after `runner`, one per line."""
    for candidate in candidates(list(words) or [""]):
        print(candidate)
    return EXIT_DONE


def candidates(words: list[str]) -> list[str]:
    """The completions of the last word; the words before it say where we are."""
    from runner.cli.main import VERBS

    current, before = words[-1], words[:-1]
    if not before:
        return _starting(current, VERBS)
    verb, previous = before[0], before[-1]
    if previous in ("--config-dir", "-cd", "--to", "--data-root", "--against", "--root", "--from"):
        return [DIRECTORIES]
    if previous in ("--cfg", "-c"):
        return _starting(current, ("job", "hydra", "all"))
    if current.startswith("-"):
        return _starting(current, FLAGS.get(verb, ("--help",)))
    if verb == "tune" and current.startswith("tune."):
        return _starting(current, _keys_of({"tune": _read("tune.yaml")["tune"]}))
    if verb in ("train", "validate", "tune"):
        return _overrides(current, before[1:])
    position = len([w for w in before[1:] if not w.startswith("-")])
    if verb == "eval":
        return [DIRECTORIES] if position == 0 else _starting(current, _keys_of(_read("eval.yaml")))
    if verb == "merge":
        return _merge_words(current)
    if verb == "ls":
        return _starting(current, paths.groups()) if position == 0 else []
    if verb == "show" or (verb == "cp" and position == 0):
        return _keys(current)
    if verb == "data":
        return _data_words(current, before[1:])
    if verb == "diff":
        return [*_keys(current), DIRECTORIES]
    if verb in ("export", "predict", "rerun"):
        return [DIRECTORIES] if position == 0 else []
    if verb in ("resume", "status", "cancel", "sync", "report", "cp"):
        return [DIRECTORIES]
    return _starting(current, SCRIPTS) if verb == "completion" else []


def _starting(current: str, words: Sequence[str] | dict[str, Any]) -> list[str]:
    return [word for word in words if word.startswith(current)]


def _keys(current: str) -> list[str]:
    """GROUP/OPTION: first the groups, then the options of one."""
    group, slash, _ = current.partition("/")
    if not slash:
        return [f"{name}/" for name in _starting(current, paths.groups())]
    return _starting(current, [f"{group}/{name}" for name in _names(group)]) if group in paths.groups() else []


def _names(group: str) -> list[str]:
    """Option names without reading the files."""
    base = paths.config_root() / group
    return sorted(p.relative_to(base).with_suffix("").as_posix() for p in base.rglob("*.yaml"))


def _overrides(current: str, typed: list[str]) -> list[str]:
    """Groups and their options (also the last of several, `a,b`), keys of sections and plain keys."""
    plus = current[: len(current) - len(current.lstrip("+~"))]
    word = current[len(plus) :]
    group, equals, value = word.partition("=")
    if equals:
        done, comma, _ = value.rpartition(",")
        if group not in paths.groups():
            return []
        return _starting(current, [f"{plus}{group}={done}{comma}{name}" for name in _names(group)])
    section, dot, _ = word.partition(".")
    if dot:
        return _starting(current, [f"{plus}{section}.{key}=" for key in _section_keys(section, typed)])
    groups = [g for g in paths.groups() if g not in ("task", "head")]
    chosen = {w.lstrip("+~").partition("=")[0] for w in typed}
    words = [f"{plus}{g}=" for g in groups if g not in chosen]
    if not plus:
        words += _keys_of({k: v for k, v in _read("train.yaml").items() if k not in ("defaults", "hydra")})
        words += [f"{g}." for g in groups if g != "experiment" and word]
    return _starting(current, words)


def _merge_words(current: str) -> list[str]:
    """What `runner merge` takes: a strategy, its keys, and the keys of merge.yaml."""
    group, equals, _ = current.partition("=")
    if equals:
        return _starting(current, [f"merge={name}" for name in _names("merge")]) if group == "merge" else []
    keys = _keys_of({k: v for k, v in _read("merge.yaml").items() if k not in ("defaults", "hydra")})
    return _starting(current, ["merge=", *keys])


def _data_words(current: str, typed: list[str]) -> list[str]:
    """What `runner data` takes: what to do, a data set, and keys of its mixture."""
    from runner.cli.data import ACTIONS

    plain = [word for word in typed if not word.startswith("-")]
    if not plain:
        return _starting(current, ACTIONS)
    if plain[0] == "list":
        return []
    if len(plain) == 1:
        return _starting(current, [o.name for o in paths.options("mixture") if "licence" in o.notes])
    content = {k: v for k, v in _read(f"mixture/{plain[1]}.yaml").items() if k not in ("defaults", "tasks")}
    return _starting(current, _keys_of({"mixture": content}))


def _section_keys(section: str, typed: list[str]) -> list[str]:
    """Dotted keys of the option that fills a section: the one typed, else the default of train.yaml."""
    option = next((w.partition("=")[2] for w in typed if w.startswith(f"{section}=")), None)
    for entry in _read("train.yaml").get("defaults", []):
        if option is None and isinstance(entry, dict) and section in entry:
            option = entry[section]
    content = _read(f"{section}/{option}.yaml")
    return [key.removesuffix("=") for key in _keys_of({k: v for k, v in content.items() if k != "defaults"})]


def _keys_of(content: dict[str, Any], prefix: str = "") -> list[str]:
    """`key=` for every leaf, by dotted path."""
    found = []
    for key, value in content.items():
        if key.startswith("_"):
            continue
        found += _keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}="]
    return found


def _read(name: str) -> dict[str, Any]:
    """One of the shipped YAML files, every value as text; empty where there is none."""
    import yaml

    path: Path = paths.config_root() / name
    if not path.is_file():
        return {}
    loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    return loaded if isinstance(loaded, dict) else {}
