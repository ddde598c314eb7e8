"""What README, docs and examples say exists: every command, option, file and preset; what is quick is run."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from qernel.cli import _subparsers, build_parser, main
from qernel.config import from_dict, override, to_dict
from qernel.observables import check_names
from qernel.presets import PRESETS, preset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = {p.relative_to(ROOT).as_posix(): p.read_text() for p in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
SOURCES = {p.relative_to(ROOT).as_posix(): p.read_text() for p in (ROOT / "examples").glob("*.py")}
FLAGS = {s for p in _subparsers(build_parser()).values() for a in p._actions for s in a.option_strings}
STANDS_FOR = {
    "RUN": "runs/n3",
    "PRESET": "moire-n3",
    "NAME": "density",
    "FILE.nc": "file.nc",
    "M": "2",
    "$(RUN)": "runs/n",
}
"""What the pages write where a reader puts in something of their own."""


def fenced(text):
    """Blocks of shell: fenced, or indented by four; lines that go on are joined."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.S)) + "".join(re.findall(r"^    qernel .*\n", text, re.M))
    return re.sub(r"\\\n\s*", "", blocks)


def inline(text):
    """Code between single backquotes, over line ends too."""
    return [" ".join(x.split()) for x in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]


def commands(text):
    """Arguments of every call of the program in shell blocks and inline code."""
    found = re.findall(r"^\s*(?:\S*/)?qernel (.*?)(?:\s+#.*)?$", fenced(text), re.M)
    return found + [x.removeprefix("qernel ") for x in inline(text) if x.startswith("qernel ")]


def words(line):
    """The words of a command, with something for what is left to the reader."""
    return [STANDS_FOR.get(w, w) for w in shlex.split(line) if w != "…"]


CALLS = sorted(
    {(page, line) for page, text in (PAGES | {"Makefile": f"```sh\n{MAKEFILE}```"}).items() for line in commands(text)}
)
OPTIONS = sorted({(page, x) for page, text in PAGES.items() for x in inline(text) if re.match(r"--[a-z]", x)})
SCRIPTS = sorted(
    {
        (page, x)
        for page, text in PAGES.items()
        for x in re.findall(r"python (\S+\.py[^`\n#]*)", fenced(text) + "\n".join(inline(text)))
    }
)


def test_there_is_something_to_check():
    assert len(CALLS) >= 60
    assert len({page for page, _ in CALLS}) >= 6
    assert len(OPTIONS) >= 20
    assert len(SCRIPTS) >= 3


@pytest.mark.parametrize(("page", "line"), CALLS)
def test_documented_commands_parse(page, line):
    arguments = words(line)
    if arguments[0].startswith("-"):
        assert arguments == ["--version"]
        return
    if len(arguments) == 1:
        assert arguments[0] in _subparsers(build_parser())
        return
    options, rest = build_parser().parse_known_args(arguments)
    if getattr(options, "preset", None):
        # exact and hf also take a run folder
        a_run = options.command in ("exact", "hf") and options.preset.startswith("runs/")
        assert a_run or options.preset in PRESETS
    assert rest == [] or options.command in ("train", "finetune")
    if rest:
        from_dict(override(to_dict(preset(getattr(options, "preset", "moire-n6"))), rest))
    if getattr(options, "observables", None):
        check_names(tuple(options.observables) if options.observables != ["all"] else "all")
    run = str(getattr(options, "run", None) or getattr(options, "parent", None))
    if run.startswith("models/"):
        assert (ROOT / run / "config.json").exists() or list((ROOT / run).glob("checkpoints/*")), run


@pytest.mark.parametrize(("page", "text"), OPTIONS)
def test_documented_options_exist(page, text):
    """An option of some command, or a field of the configuration with a value it can have."""
    arguments = [STANDS_FOR.get(w, w) for w in text.split()]
    flags = [w for w in arguments if w.startswith("--")]
    if all(f in FLAGS for f in flags):
        return
    if len(arguments) > 1:
        override(to_dict(preset("moire-n6")), arguments)
    else:
        path = flags[0].removeprefix("--").split(".")
        value = to_dict(preset("moire-n6"))
        for name in path:
            value = value[name]


@pytest.mark.parametrize(("page", "line"), SCRIPTS)
def test_documented_scripts_exist_with_their_options(page, line):
    script, *arguments = line.split()
    source = (ROOT / script).read_text()
    for option in (a for a in arguments if a.startswith("--")):
        assert f'"{option}"' in source, option


@pytest.mark.parametrize("page", sorted(PAGES | SOURCES))
def test_documented_files_exist(page):
    text = PAGES[page] if page in PAGES else SOURCES[page]
    made = {words(line)[2] for _, line in CALLS if line.startswith("export ")}  # by commands of the pages
    for name in re.findall(r"\]\(((?!https?:)[^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(name).exists(), name
    for code in inline(text) + re.findall(r"\S+", fenced(text)):
        path = code.rstrip("/.,;")
        if re.fullmatch(r"(?:docs|examples|tests|benchmarks|models|src)/[\w./-]+", path) and path not in made:
            assert (ROOT / path).exists(), path
        elif re.fullmatch(r"\w+\.py", path):
            assert list((ROOT / "src").rglob(path)), path


def test_documented_targets_of_make_exist():
    for page, text in PAGES.items():
        for target in re.findall(r"^make ([\w-]+)", fenced(text), re.M) + [
            x.split()[1] for x in inline(text) if re.fullmatch(r"make [\w-]+", x)
        ]:
            assert re.search(rf"^{target}:", MAKEFILE, re.M), (page, target)


def test_documented_presets_are_presets():
    names = {page: set(re.findall(r"`((?:moire-n|free-n|one-e)[\w-]+)`", text)) for page, text in PAGES.items()}
    assert names["README.md"] == set(PRESETS)
    assert set().union(*names.values()) <= set(PRESETS)


SMALL = (
    "--steps 1 --network.layers 1 --network.width 4 --network.heads 0 --network.experts 0 --network.film_width 0 "
    "--network.determinants 1 --network.shared_width 4 --network.jastrow_shells 2 --network.plane_wave_cutoff 40 "
    "--sampling.walkers 4 --sampling.sweeps 1 --sampling.burn_in 2 --family.lam 0.5 1.5 2 --train_at.lam 1 1 1"
)
SAMPLED = "--observables energy --walkers 2 --moves 1 --burn-in 0 --max-sweeps 20"
REDUCED = {
    "train": SMALL,
    "finetune": "--steps 0",
    "evaluate": SAMPLED,
    "scan": f"{SAMPLED} --lam 1 1 1",  # as many couplings as `evaluate`: what it compiled serves again
    "export": "--bands 1",
    "report": "--no-references",
}
"""What is added to a command so that it takes seconds: the last of an option counts."""

STORY = fenced(README[README.index("## Train, ask, report") : README.index("`report_data.nc`")])
LONG = (
    "--out hf.json",
    "--references hf.json",
    "--observables all",
    "--lam 0.5 1.5 21",
    "--compare",
    "bench",
    "doctor",
    "--bands 6",
    "--explain",
)
"""Of the README's story only parsed: minutes, tested elsewhere, or leaving the process."""


def test_the_story_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """Its commands one after the other in an empty folder, with the smallest network and the fewest steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = []
    for line in commands(f"```sh\n{STORY}```"):
        if any(x in line for x in LONG):
            continue
        arguments = [*words(line), *REDUCED.get(line.split()[0], "").split()]
        assert main(arguments) == 0, line
        out = capsys.readouterr().out
        assert out, line
        done.append(line.split()[0])
    assert {"train", "evaluate", "scan", "finetune", "export", "transition", "report", "exact", "hf", "status"} == {
        *done
    }
    written = ("runs/n3/results.nc", "runs/n3/report.html", "models/n3", "runs/n3-finetuned/config.json")
    assert all((tmp_path / name).exists() for name in written)


def test_example_of_a_potential_runs(tmp_path, capsys):
    path = ROOT / "examples" / "own_potential.py"
    spec = importlib.util.spec_from_file_location("own_potential", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(tmp_path / "stripes", steps=4, target_error=2.0)
    assert "five bands" in capsys.readouterr().out
    source = path.read_text()
    body = source[source.index("@dataclass") : source.index("def main")].strip()
    assert body in README, "the README shows another potential than the example"
