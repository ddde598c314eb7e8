import json
from dataclasses import dataclass, replace

import pytest

from qernel.cell import Cell
from qernel.config import Adam, Config, Sampling, differences, from_dict, read_config, to_dict
from qernel.errors import InputError
from qernel.family import Family
from qernel.hamiltonian import Hamiltonian, MoirePotential
from qernel.presets import PRESETS, preset
from qernel.spring import Spring
from qernel.types import Electrons, PerElectron


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_of_every_preset(name):
    config = preset(name)
    assert config.name == name
    text = json.dumps(to_dict(config), allow_nan=False)
    assert from_dict(json.loads(text)) == config


def test_round_trip_of_what_presets_do_not_use():
    config = Config(
        family=Family(
            n_up=2,
            n_down=1,
            cell=Cell("square", ((1, 1), (2, -1))),
            twist=(0.1, -2.0),
            gate=3.0,
            phi_deg=(45.0, 60.0, 3),
            twist_2=(0.0, 0.5, 2),
        ),
        optimizer=Adam(rate=1e-3),
        sampling=Sampling(chunk=4),
    )
    back = from_dict(json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert isinstance(back.optimizer, Adam)
    assert back.family.cell.supercell == ((1, 1), (2, -1))


def test_missing_fields_take_their_defaults():
    assert from_dict({}) == Config()
    assert from_dict({"optimizer": {"type": "Adam"}}).optimizer == Adam()
    assert from_dict({"optimizer": {"rate": 0.2}}).optimizer == Spring(rate=0.2)
    assert from_dict({"sampling": {"sweeps": 7}}).sampling.sweeps == 7
    assert from_dict({"sampling": {"sweeps": "auto"}}) == Config()
    # A whole number is a number.
    assert from_dict({"clip": 4}).clip == 4.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stesp": 3}, "stesp: unknown field; did you mean 'steps'"),
        ({"network": {"widht": 3}}, r"network\.widht: unknown field; did you mean 'width'"),
        ({"family": {"cell": {"supercel": 1}}}, r"family\.cell\.supercel: unknown field; did you mean 'supercell'"),
        ({"optimizer": {"type": "Adma"}}, r"optimizer\.type = Adma: did you mean 'Adam'"),
        ({"optimizer": {"type": "Adam", "damping": 1.0}}, r"optimizer\.damping: unknown field"),
        ({"optimizer": 3}, "optimizer = 3"),
        ({"steps": 1.5}, r"steps = 1\.5: must be of type int"),
        ({"steps": True}, "steps = True"),
        ({"clip": "wide"}, "clip = 'wide': must be of type float"),
        ({"network": {"dtype": "float16"}}, r"network\.dtype = float16: must be float32 or float64"),
        ({"network": {"heads": None}}, r"network\.heads = None"),
        ({"family": {"lam": [0.0, 1.0]}}, r"family\.lam = .*must be 3 values"),
        ({"family": {"lam": 1.0}}, r"family\.lam = 1\.0: must be 3 values"),
        ({"family": {"lam": [0.0, 1.0, 2.5]}}, r"family\.lam = 2\.5: must be of type int"),
        ({"family": {"lam": ["nan", 1.0, 2]}}, r"family\.lam = .*finite"),
        ({"family": {"cell": {"supercell": [[1, 0], [0.5, 1]]}}}, r"family\.cell\.supercell = 0\.5"),
        ({"family": {"cell": {"supercell": [[1, 2], [2, 4]]}}}, r"cell\.supercell = .*non-singular"),
        ({"family": {"cell": {"lattice": "kagome"}}}, r"family\.cell\.lattice = kagome"),
        ({"family": 3}, "family = 3: must be a table"),
        ({"seed": -1}, "seed = -1"),
        ({"sampling": {"walkers": 1}}, r"sampling\.walkers = 1: must be at least 2"),
        ({"sampling": {"sweeps": 0}}, r"sampling\.sweeps = 0: must be at least 1, or auto"),
        ({"sampling": {"sweeps": "often"}}, r"sampling\.sweeps = often: must be auto"),
        ({"sampling": {"sweeps": 2.5}}, r"sampling\.sweeps = 2\.5: must be of type int"),
        ({"sampling": {"chunk": 0}}, r"sampling\.chunk = 0"),
    ],
)
def test_errors_name_the_path(data, message):
    with pytest.raises(InputError, match=message) as error:
        from_dict(data)
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Flat:
    """A potential that is not built in."""

    def __call__(self, r: Electrons, h: Hamiltonian) -> PerElectron:
        return 0 * r[..., 0]


def test_a_potential_that_is_not_built_in_must_be_given():
    config = Config(family=Family(potential=Flat()))
    data = to_dict(config)
    with pytest.raises(InputError, match=r"family\.potential = Flat: not built in"):
        from_dict(data)
    assert from_dict(data, Flat()) == config
    assert isinstance(from_dict(to_dict(Config())).family.potential, MoirePotential)


def test_differences_are_named_with_both_values():
    old = Config()
    new = replace(old, seed=3, network=replace(old.network, width=64), optimizer=Adam())
    lines = differences(to_dict(old), to_dict(new))
    assert "seed: 0 → 3" in lines
    assert "network.width: 32 → 64" in lines
    assert any(line.startswith("optimizer.type: Spring → Adam") for line in lines)
    assert differences(to_dict(old), to_dict(old)) == []


def test_read_config_says_what_is_wrong_with_the_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        read_config(tmp_path / "none.json")
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_config(file)
    file.write_text(json.dumps(to_dict(preset("moire-n2"))))
    assert read_config(file) == preset("moire-n2")


def test_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="preset = moire_n3: unknown; did you mean 'moire-n3'"):
        preset("moire_n3")
