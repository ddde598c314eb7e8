"""Bad input made up by the hundred: values, configurations, words of a command line, files."""

import contextlib
import copy
import hashlib
import io
import json
import struct
from dataclasses import asdict, dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from qernel import checkpoint
from qernel.cli import main
from qernel.config import from_dict, override, to_dict
from qernel.log import provenance
from qernel.presets import PRESETS, preset
from qernel.run_folder import describe_run
from qernel.vmc import Vmc

PAGE = [to_dict(preset(name)) for name in PRESETS]


def examples(count):
    """A profile for so many: the same ones every time, and nothing written beside the tests."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


class Reached(Exception):
    """All checks were passed: what would compute for long was stopped."""


def reached(*_, **__):
    raise Reached


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


WORDS = [
    *(
        "",
        " ",
        "nan",
        "-inf",
        "inf",
        "NaN",
        "1e400",
        "-1",
        "0",
        "-0.0",
        "0.5",
        "1e12",
        "1e308",
        "1e-320",
        "true",
        "none",
    ),
    *("[1,2", "[[1,2],[3]]", "{}", '{"type": "Adam"}', "\x1b[31mred\x1b[0m", "a\nqernel: done", "\u202etxt", "é" * 300),
    *(
        "١٢٣",
        "0x10",
        "1_000",
        "9" * 400,
        "9" * 5000,
        "../../x",
        "/etc/passwd",
        "'; rm -rf",
        "%s%n",
        "[" * 5000,
        "x" * 9999,
    ),
    *("float16", "kagome", "1000000", "1000000000000"),
]

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [10**400, -(10**400), 2**63, 2**31, 10**9, 10**12, 1e308, 5e-324, float("nan"), float("inf"), -1, 0]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=30), st.sampled_from(WORDS)),
    lambda v: st.one_of(st.lists(v, max_size=5), st.dictionaries(st.text(max_size=9), v, max_size=3)),
    max_leaves=8,
) | st.sampled_from([50, 400]).map(nested)


def paths(table, before=()):
    """Every field of a configuration, tables included."""
    for name, value in table.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from paths(value, (*before, name))


@st.composite
def configurations(draw):
    """A configuration of a preset with one to three fields replaced, added or left out."""
    data = copy.deepcopy(draw(st.sampled_from(PAGE)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths(data))))
        table = data
        for name in path[:-1]:
            table = table[name]
        change = draw(st.sampled_from(["value", "value", "value", "value", "member", "unknown", "missing"]))
        if change == "missing":
            del table[path[-1]]
        elif change == "unknown":
            table[draw(st.text(max_size=20))] = draw(values)
        elif change == "member" and isinstance(table[path[-1]], list) and table[path[-1]]:
            table[path[-1]][draw(st.integers(0, len(table[path[-1]]) - 1))] = draw(values)
        else:
            table[path[-1]] = draw(values)
        if not data:
            break
    return data


options = st.sampled_from(["--" + ".".join(p) for p in paths(PAGE[0])])
overrides = st.lists(
    st.tuples(options, st.lists(st.sampled_from(WORDS) | st.floats().map(str) | st.integers().map(str), max_size=4)),
    min_size=1,
    max_size=2,
).map(lambda found: [word for name, words in found for word in (name, *words)])


@dataclass
class Answer:
    code: int | None
    """None: all checks were passed"""
    line: str


def ask(folder, *arguments):
    """Run a command in process. A refusal is exit code 2, one plain line on stderr, and nothing written."""
    out, err = io.StringIO(), io.StringIO()
    before = contents(folder)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except Reached:
            return Answer(None, "")
    if code == 0:
        return Answer(0, "")
    text = err.getvalue()
    assert code == 2, (code, text)
    assert out.getvalue() == ""
    assert text.endswith("\n")
    plain(text[:-1])
    assert text.startswith("qernel: ")
    assert contents(folder) == before
    return Answer(2, text[len("qernel: ") : -1])


def plain(line):
    """One line that says something and does nothing to a terminal."""
    assert line.isprintable(), line
    assert 8 < len(line) < 2100


def contents(folder):
    """Path → hash of everything below a folder."""
    files = sorted(folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in files}


# --- checkpoints -----------------------------------------------------------------------------------------------------


def parts(data):
    """(safetensors' table, our header, tensors) of a checkpoint's bytes."""
    length = struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8 : 8 + length])
    return table, json.loads(table["__metadata__"]["qernel"]), data[8 + length :]


def joined(table, header, tensors):
    """The file of these, with the checksum of the header put right: an enemy can."""
    text = json.dumps(header)
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    table = {**table, "__metadata__": {"qernel": text, "qernel_sha256": digest}}
    raw = json.dumps(table).encode(errors="replace")
    return struct.pack("<Q", len(raw)) + raw + tensors


@st.composite
def damaged(draw, good):
    """Bytes of a checkpoint cut, flipped, made up, or written anew by somebody with other fields."""
    kind = draw(st.sampled_from(["cut", "flip", "random", "length", "table", "header", "header", "leaf", "config"]))
    if kind == "cut":
        return good[: draw(st.integers(0, len(good) - 1))]
    if kind == "random":
        return draw(st.binary(max_size=200))
    if kind == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + good[8:]
    if kind == "flip":
        found = bytearray(good)
        for _ in range(draw(st.integers(1, 8))):
            found[draw(st.integers(0, len(found) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(found)
    table, header, tensors = parts(good)
    if kind == "table":
        entry = table[draw(st.sampled_from([n for n in table if n != "__metadata__"]))]
        field = draw(st.sampled_from(list(entry)))
        sizes = st.lists(st.sampled_from([0, 1, 4, 2**31, 2**62, 2**64, -1]), max_size=4)
        entry[field] = draw(sizes | values)
    elif kind == "leaf":
        leaf = header["leaves"][draw(st.sampled_from(list(header["leaves"])))]
        sizes = st.lists(st.sampled_from([0, 1, 2**31, 2**62, 10**400, -1, 1.5, True]), max_size=4)
        leaf[draw(st.sampled_from(list(leaf)))] = draw(sizes | values)
    elif kind == "config":
        header["user"]["config"] = draw(configurations())
    else:
        where = draw(st.sampled_from([header, header["user"], header["leaves"]]))
        name = draw(st.sampled_from([*where, "unknown"]))
        if draw(st.booleans()):
            where[name] = draw(values)
        else:
            where.pop(name, None)
    return joined(table, header, tensors)


TINY = """
    --network.layers 1 --network.width 4 --network.heads 0 --network.experts 0 --network.film_width 0
    --network.determinants 1 --network.shared_width 4 --network.jastrow_shells 2 --network.plane_wave_cutoff 40
    --sampling.walkers 4 --sampling.sweeps 2 --sampling.burn_in 0 --family.lam 1.0 1.0 1 --steps 0
"""


def trained(folder):
    """A run of no steps, whose walkers were placed at random: nothing is compiled but the weights."""
    config = from_dict(override(to_dict(preset("moire-n2")), TINY.split()))
    vmc = Vmc(config)
    folder.mkdir(parents=True)
    describe_run(config, folder)
    header = {"config": to_dict(config), "provenance": provenance(), "plan": asdict(vmc.plan), "wall": 0.0}
    checkpoint.save(folder / "checkpoints", 0, vmc.blank(), header)
    return folder
