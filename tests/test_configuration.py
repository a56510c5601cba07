"""Config files: where they are found, overrides by type, errors that name the key, JSON and back."""

import math

import pytest
from ml_collections import ConfigDict

import configs
from mmjax.config import ConfigError
from mmjax.configuration import (
    apply_overrides,
    load_config,
    load_resolved,
    parse_value,
    save_resolved,
    to_plain,
)

FILE = """
def get_config(arg="small"):
    return {
        "zeta": {"small": 1, "large": 70}[arg],
        "rate": 1e-3,
        "flag": True,
        "name": "run one",
        "limit": None,
        "sizes": [3, 5, 7],
        "empty": (),
        "rules": (("projectors/.*", "train", 1.0), (".*", "freeze", 0.0)),
        "stages": {"pretrain": {"steps": 11, "data": {"path": "a.json"}}, "finetune": {"steps": 13}},
    }
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    return file


def test_path_with_and_without_argument(path):
    assert load_config(str(path)).zeta == 1
    assert load_config(path).zeta == 1
    assert load_config(f"{path}:large").zeta == 70


def test_order_of_the_file_is_kept_at_every_depth(path):
    config = load_config(path)
    assert list(config)[:3] == ["zeta", "rate", "flag"]
    assert list(config.stages) == ["pretrain", "finetune"]
    assert list(to_plain(config)["stages"]) == ["pretrain", "finetune"]


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("--config.zeta=12", "zeta", 12),
        ("zeta=-4", "zeta", -4),
        ("--config.rate=3", "rate", 3.0),
        ("--config.rate=2.5e-4", "rate", 2.5e-4),
        ("--config.flag=false", "flag", False),
        ("--config.flag=1", "flag", True),
        ("--config.name=two=2", "name", "two=2"),
        ("--config.name=", "name", ""),
        ("--config.name=12", "name", "12"),
        ("--config.limit=5", "limit", 5),
        ("--config.limit=some/path", "limit", "some/path"),
        ("--config.limit=None", "limit", None),
        ("--config.limit=[1, 2.5]", "limit", (1, 2.5)),
        ("--config.sizes=1,2", "sizes", (1, 2)),
        ("--config.sizes=(9,)", "sizes", (9,)),
        ("--config.sizes=4", "sizes", (4,)),
        ("--config.empty=a,b", "empty", ("a", "b")),
        ("--config.rules=[('.*', 'train', 1.0)]", "rules", ((".*", "train", 1.0),)),
        ("--config.stages.pretrain.steps=21", "stages.pretrain.steps", 21),
        ("--config.stages.pretrain.data.path=b.json", "stages.pretrain.data.path", "b.json"),
    ],
)
def test_override_is_read_as_the_type_that_stands_there(path, override, key, value):
    config = load_config(path, [override])
    for name in key.split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


def test_none_may_become_a_section(path):
    config = load_config(path, ["--config.limit={'b': 1, 'a': {'c': [2]}}"])
    assert isinstance(config.limit, ConfigDict) and config.limit.a.c == (2,)
    assert list(config.limit) == ["b", "a"]


def test_the_last_of_two_overrides_wins(path):
    assert load_config(path, ["--config.zeta=5", "--config.zeta=6"]).zeta == 6


@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.rat=1", ["'rat'", '"rate"', "config "]),
        ("--config.stages.pretrian.steps=1", ["config.stages", "'pretrian'", '"pretrain"', "finetune"]),
        ("--config.stages.pretrain.batch=1", ["config.stages.pretrain", "'batch'", "steps"]),
        ("--config.zeta.deep=1", ["config.zeta.deep", "config.zeta is 1"]),
        ("--config.zeta=1.5", ["config.zeta", "an integer", "'1.5'", "1"]),
        ("--config.zeta=many", ["config.zeta", "an integer", "'many'"]),
        ("--config.rate=fast", ["config.rate", "a number", "'fast'"]),
        ("--config.rate=nan", ["config.rate", "finite"]),
        ("--config.rate=inf", ["config.rate", "finite"]),
        ("--config.limit=1e999", ["config.limit", "finite"]),
        ("--config.flag=maybe", ["config.flag", "true or false", "'maybe'"]),
        ("--config.sizes=1,x", ["config.sizes.1", "an integer", "'x'"]),
        ("--config.rules=1,2", ["config.rules.0", "expected tuple", "1"]),
        ("--config.stages=3", ["config.stages is a section", "pretrain"]),
        ("--config.zeta", ["--config.zeta", "--config.key=value"]),
        ("--config.=1", ["--config.key=value"]),
    ],
)
def test_override_errors_name_the_key_and_what_would_be_right(path, override, words):
    with pytest.raises(ConfigError) as error:
        load_config(path, [override])
    for word in words:
        assert word in str(error.value)


def test_missing_file_and_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config is named 'llava_15'.*\"llava_1_5\".*llava_1_5"):
        load_config("llava_15:7b")
    gone = tmp_path / "gone.py"
    with pytest.raises(FileNotFoundError, match="gone.py' does not exist"):
        load_config(f"{gone}:7b")


def test_files_that_are_not_configs(tmp_path):
    other = tmp_path / "other.py"
    other.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"other.py: has no function get_config"):
        load_config(other)
    other.write_text("def get_config():\n    return {'a': 1}\n")
    assert load_config(other).a == 1
    with pytest.raises(ConfigError, match=r"takes no argument, got '7b'"):
        load_config(f"{other}:7b")
    text = tmp_path / "notes.txt"
    text.write_text("a")
    with pytest.raises(ConfigError, match="a config is a .py file"):
        load_config(text)


@pytest.mark.parametrize("value", ["float('nan')", "{'x': [1.0, float('inf')]}", "object()", "{1, 2}"])
def test_values_that_no_config_can_hold_are_named(tmp_path, value):
    file = tmp_path / "bad.py"
    file.write_text(f"def get_config():\n    return {{'deep': {{'key': {value}}}}}\n")
    with pytest.raises(ConfigError, match=r"bad\.py\.deep\.key"):
        load_config(file)


def test_config_dict_that_lost_the_order_of_its_stages(tmp_path):
    file = tmp_path / "sorted.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    stages = {'pretrain': {'steps': 1}, 'finetune': {'steps': 2}}\n"
        "    return ConfigDict({'rate': 0.5, 'stages': stages})\n"
    )
    with pytest.raises(ConfigError, match="stages run in order"):
        load_config(file)
    file.write_text(file.read_text().replace("'pretrain'", "'align'"))
    with pytest.raises(ConfigError, match="stages run in order"):
        load_config(file)
    file.write_text(file.read_text().replace("'stages': stages", ""))
    assert load_config(file, ["rate=1"]).rate == 1.0


def test_round_trip_through_json(path, tmp_path):
    config = load_config(f"{path}:large", ["--config.sizes=2,4"])
    saved = tmp_path / "new" / "config.json"
    save_resolved(config, saved)
    back = load_resolved(saved)
    assert back == config and to_plain(back) == to_plain(config)
    assert list(back.stages) == ["pretrain", "finetune"]
    again = load_config(str(saved), ["--config.zeta=3"])
    assert (again.zeta, again.sizes) == (3, (2, 4))


def test_resolved_json_is_checked(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(ConfigError, match="config.json: not JSON"):
        load_resolved(file)
    file.write_text("[1]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        load_resolved(file)
    file.write_text('{"a": {"b": NaN}}')
    with pytest.raises(ConfigError, match=r"config\.json\.a\.b: must be finite"):
        load_resolved(file)


def test_loaded_configs_are_locked(path):
    config = load_config(path)
    with pytest.raises(AttributeError, match="rate"):
        config.rte = 1.0


def test_overriding_in_place_and_parsing_alone():
    config = ConfigDict({"a": {"b": 1}})
    apply_overrides(config, ["config.a.b=4"])
    assert config.a.b == 4
    assert math.isclose(parse_value(" 2e-5 ", 1.0, "rate"), 2e-5)


def test_systems_are_found_by_what_they_take_and_give():
    assert "llava_1_5" in configs.list_systems(inputs={"image"})
    assert configs.list_systems() == configs.SYSTEMS
    assert not configs.list_systems(outputs={"text", "smell"})
    keys = {"title", "inputs", "outputs", "parts", "sizes", "run", "verified"}
    assert all(set(system) == keys for system in configs.SYSTEMS.values())


@pytest.mark.parametrize("name", configs.SYSTEMS)
def test_every_listed_config_loads_at_every_size(name):
    for size in configs.SYSTEMS[name]["sizes"]:
        assert load_config(f"{name}:{size}") is not None
    with pytest.raises(ConfigError):
        load_config(f"{name}:no-such-size")
