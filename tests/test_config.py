"""Configs: types, choices and bounds are checked; an unknown name gets the nearest valid one."""

from dataclasses import FrozenInstanceError, dataclass

import pytest

from fairvlm_core.config import build, check, option, read_params, type_name
from fairvlm_core.errors import ConfigError


@dataclass(frozen=True)
class Config:
    seed: int = option(0, "Seed.", low=0)
    rate: float = option(0.1, "Rate.", low=0, high=1)
    cap: float | None = option(1.0, "Cap.", low=1)
    name: str = option("a", "Name.", choices=("a", "bee"))
    on: bool = option(False, "On.")
    edges: tuple[int, ...] = option((40, 60), "Edges.", low=1)
    extra: dict = option({}, "Extra.")  # noqa: RUF009 - a factory copies it

    def __post_init__(self):
        check(self)


def test_values_take_their_types():
    config = build(Config, {"rate": 1, "edges": [50], "cap": None, "extra": {"x": 1}}, where="params.yaml")
    assert (config.rate, type(config.rate)) == (1.0, float)
    assert config.edges == (50,)
    assert config.cap is None
    assert build(Config, {"rate": "2e-5"}, where="") == Config(rate=2e-5)  # as YAML reads it
    assert Config().extra is not Config().extra
    with pytest.raises(FrozenInstanceError):
        config.seed = 2


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_bounds_are_inclusive(value):
    assert Config(rate=value).rate == value


@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        ("seed", 1.5, "Give a value of the type int."),
        ("seed", True, "Give a value of the type int."),
        ("seed", "1", "Give a value of the type int."),
        ("seed", None, "Give a value of the type int."),
        ("seed", -1, "Give a number at least 0."),
        ("rate", 1.01, "Give a number between 0 and 1."),
        ("rate", "fast", "Give a value of the type number."),
        ("rate", False, "Give a value of the type number."),
        ("rate", float("nan"), "Give a number."),
        ("cap", 0.5, "Give a number at least 1."),
        ("cap", "x", "Give a value of the type number or nothing."),
        ("name", "be", 'Did you mean "bee"?'),
        ("on", 1, "Give a value of the type true or false."),
        ("edges", (40, "x"), "Give a value of the type list of int."),
        ("edges", 40, "Give a value of the type list of int."),
        ("edges", (40, 0), "Give a number at least 1."),
        ("extra", [1], "Give a value of the type mapping."),
    ],
)
def test_a_value_that_cannot_be_names_its_field_and_what_it_can_be(field, value, mend):
    with pytest.raises(ConfigError) as caught:
        Config(**{field: value})
    assert caught.value.where == f"test_config.{field}"
    assert field in caught.value.what
    assert caught.value.mend == mend


def test_an_unknown_parameter_gets_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        build(Config, {"sead": 1}, where="params.yaml, section toy")
    assert caught.value.what == 'There is no parameter "sead".'
    assert caught.value.where == "params.yaml, section toy, key sead"
    assert caught.value.mend == 'Did you mean "seed"?'
    with pytest.raises(ConfigError) as caught:
        build(Config, {"zzzzzz": 1}, where="")
    assert caught.value.mend == "Valid names: cap, edges, extra, name, on, rate, seed."


@pytest.fixture
def params(tmp_path):
    def write(text):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return write


def test_a_section_of_a_params_file(params):
    path = params("first: {seed: 3}\nsecond:\n")
    assert read_params(path, "first", ["first", "second"]) == {"seed": 3}
    assert read_params(path, "second", ["first", "second"]) == {}
    assert read_params(path, "third", ["first", "second", "third"]) == {}
    assert read_params(params(""), "first", ["first"]) == {}


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("frist: {seed: 3}\n", 'There is no section "frist".', ", key frist"),
        ("first: {seed: 3}\nsecnd: {seed: 3}\n", 'There is no section "secnd".', ", key secnd"),
        ("first: {seed: 3\nsecond: 1\n", "The params file is not valid YAML.", ", line 2"),
        ("- first\n", "The params file has no sections.", ""),
        ("first: 3\n", "The section holds no parameters.", ", key first"),
    ],
)
def test_a_params_file_that_cannot_be_used(params, text, what, place):
    path = params(text)
    with pytest.raises(ConfigError) as caught:
        read_params(path, "first", ["first", "second"])
    assert caught.value.what == what
    assert caught.value.where == f"{path}{place}"
    assert caught.value.mend


def test_a_params_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_params(tmp_path / "no.yaml", "first", ["first"])
    assert caught.value.where == str(tmp_path / "no.yaml")


def test_types_as_a_user_reads_them():
    kinds = (int, float, bool, str, float | None, tuple[str, ...], dict[str, float])
    assert [type_name(kind) for kind in kinds] == [
        "int",
        "number",
        "true or false",
        "text",
        "number or nothing",
        "list of text",
        "mapping",
    ]
