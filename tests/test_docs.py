"""What the README says exists: every command, option, file and preset; the example runs."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from qernel.cli import build_parser
from qernel.config import from_dict, override, to_dict
from qernel.presets import PRESETS, preset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "".join(re.findall(r"```sh\n(.*?)```", README, re.S)) + (ROOT / "Makefile").read_text()
COMMANDS = re.findall(r"^\s*(?:\S*/)?qernel (.*?)(?:\s+#.*)?$", BLOCKS, re.M)
OVERRIDES = re.findall(r"--(?:network|optimizer|sampling|family)\.[\w.]+ [-\w.]+", README)


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 8
    assert len(OVERRIDES) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_documented_commands_parse(line):
    words = shlex.split(line.replace("$(RUN)", "runs/demo"))
    options, rest = build_parser().parse_known_args(words)
    if getattr(options, "preset", None):
        assert options.preset in PRESETS
    assert rest == [] or options.command == "train"
    if rest:
        from_dict(override(to_dict(preset(options.preset)), rest))


@pytest.mark.parametrize("text", OVERRIDES)
def test_documented_fields_exist(text):
    override(to_dict(preset("moire-n6")), text.split())


def test_documented_files_exist():
    for name in re.findall(r"`([\w]+\.py)`", README):
        assert (ROOT / "src" / "qernel" / name).exists(), name
    for name in re.findall(r"\]\((docs/[^)]+)\)|`((?:docs|examples)/[^`]+)`", README):
        assert (ROOT / (name[0] or name[1])).exists(), name


def test_documented_presets_are_all_presets():
    named = set(re.findall(r"`((?:moire-n|free-n|one-)[\w-]+)`", README))
    assert named == set(PRESETS)


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
