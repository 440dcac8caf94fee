from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator

from dina_lrm.config import Config, apply_overrides, load_config, parse_config
from dina_lrm.errors import ConfigError


class Apple(Config):
    kind: Literal["apple"] = "apple"
    weight: float = Field(0.1, gt=0)


class Pear(Config):
    kind: Literal["pear"] = "pear"
    seeds: int = 5
    name: str | None = None


class Basket(Config):
    fruit: Annotated[Apple | Pear, Field(discriminator="kind")] = Apple()
    more: tuple[Apple, ...] = ()
    spare: Apple | None = None
    learning_rate: float = 1e-3
    warm_up: int | float = 1
    taps: tuple[int, ...] = (4, 8)
    label: str = "basket"
    out: Path = Path("runs")
    notes: dict[str, float] = {}

    @field_validator("learning_rate")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError(f"learning rate must be above 0, got {value:g}")
        return value


def refused(values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(Basket, values, "basket.yaml")
    message = str(caught.value)
    assert message.startswith("basket.yaml") and "\n" not in message
    return message


def override_refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(Basket(), overrides)
    return str(caught.value)


class TestLoad:
    def test_yaml_reads_5e_5_as_text_and_the_field_as_a_number(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("learning_rate: 5e-5\nfruit: {kind: pear, seeds: 3}\n")
        config = load_config(Basket, tmp_path / "a.yaml")
        assert config.learning_rate == 5e-5
        assert config.fruit == Pear(seeds=3)

    def test_json_reads_what_a_dump_wrote(self, tmp_path: Path) -> None:
        config = Basket(fruit=Pear(name="williams"), taps=(1, 2), out=tmp_path)
        (tmp_path / "a.json").write_text(json.dumps(config.model_dump(mode="json")))
        assert load_config(Basket, tmp_path / "a.json") == config

    def test_an_empty_file_is_all_defaults(self, tmp_path: Path) -> None:
        (tmp_path / "a.yml").write_text("# nothing\n")
        assert load_config(Basket, tmp_path / "a.yml") == Basket()

    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("a.toml", "x = 1", ".yaml, .yml or .json"),
            ("a.yaml", "a: [", "is not YAML"),
            ("a.json", "{'a': 1}", "is not JSON"),
            ("a.yaml", "- 1\n- 2\n", "keys and values, got list"),
            ("a.yaml", "out: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ],
    )
    def test_what_is_no_configuration_is_refused(self, tmp_path: Path, name: str, text: str, says: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=says) as caught:
            load_config(Basket, tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml.*No such file"):
            load_config(Basket, tmp_path / "none.yaml")


class TestUnknownKeys:
    def test_names_key_and_closest(self) -> None:
        message = refused({"learning_rte": 1})
        assert 'unknown key "learning_rte"' in message and "did you mean learning_rate?" in message

    def test_names_the_full_path_and_what_that_place_accepts(self) -> None:
        message = refused({"fruit": {"kind": "pear", "seed": 3}})
        assert "at fruit.seed;" in message and "did you mean seeds?" in message
        assert "kind, name, seeds" in message and "weight" not in message

    def test_inside_lists_and_optional_parts(self) -> None:
        assert "at more.1.wait" in refused({"more": [{}, {"wait": 1}]})
        assert "at spare.colour; accepted here: kind, weight" in refused({"spare": {"colour": "red"}})

    def test_all_findings_in_one_line(self) -> None:
        message = refused({"foo": 1, "taps": ["x"]})
        assert "foo" in message and "taps.0" in message

    def test_python_callers_meet_it_too(self) -> None:
        with pytest.raises(ValidationError, match="extra_forbidden"):
            Basket(foo=1)  # type: ignore[call-arg]


class TestWrongValues:
    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"learning_rate": "fast"}, "learning_rate: input should be a valid number"),
            ({"learning_rate": float("nan")}, "learning_rate: input should be a finite number"),
            ({"learning_rate": -1}, "learning_rate: learning rate must be above 0, got -1"),
            ({"fruit": {"kind": "fig"}}, "fruit.kind must be one of 'apple', 'pear', got 'fig'"),
            ({"fruit": {"weight": 1}}, "fruit.kind is missing"),
            ({"fruit": {"kind": "apple", "weight": 0}}, "fruit.weight: input should be greater than 0, got 0"),
            ({"warm_up": "soon"}, "warm_up: input should be a valid"),
            (["learning_rate"], "got list"),
        ],
    )
    def test_path_value_and_reason(self, values: object, says: str) -> None:
        assert says in refused(values)

    def test_frozen(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            Basket().label = "other"  # type: ignore[misc]


class TestOverrides:
    def test_the_original_stays(self) -> None:
        before = Basket()
        assert apply_overrides(before, ["label=x"]).label == "x"
        assert before == Basket()

    def test_nothing_to_change(self) -> None:
        config = Basket(spare=Apple(weight=2))
        assert apply_overrides(config, []) == config

    @pytest.mark.parametrize(
        ("override", "field", "value"),
        [
            ("learning_rate=5e-5", "learning_rate", 5e-5),
            ("taps=[1, 2, 3]", "taps", (1, 2, 3)),
            ("taps.1=9", "taps", (4, 9)),
            ("spare.weight=2", "spare", Apple(weight=2)),
            ("spare=null", "spare", None),
            ("label=007", "label", "007"),
            ("label=yes", "label", "yes"),
            ("label=2026-01-02", "label", "2026-01-02"),
            ("label=a=b", "label", "a=b"),
            ("label='3'", "label", "3"),
            ("out=/tmp/x y", "out", Path("/tmp/x y")),
            ("warm_up=0.5", "warm_up", 0.5),
            ("notes.any=1", "notes", {"any": 1.0}),
            ("fruit.weight=0.5", "fruit", Apple(weight=0.5)),
        ],
    )
    def test_typed_by_the_field(self, override: str, field: str, value: object) -> None:
        assert getattr(apply_overrides(Basket(), [override]), field) == value

    def test_a_new_kind_starts_afresh_in_any_order(self) -> None:
        config = Basket(fruit=Apple(weight=3))
        assert apply_overrides(config, ["fruit.kind=pear"]).fruit == Pear()
        assert apply_overrides(config, ["fruit.seeds=2", "fruit.kind=pear"]).fruit == Pear(seeds=2)
        assert apply_overrides(config, ["fruit.kind=apple"]).fruit == Apple(weight=3)

    def test_the_last_of_one_path_wins(self) -> None:
        assert apply_overrides(Basket(), ["label=a", "label=b"]).label == "b"

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("label", 'path.to.key=value, got "label"'),
            ("=1", 'path.to.key=value, got "=1"'),
            ("fruit..weight=1", "path.to.key=value"),
            ("fruit.wait=1", 'unknown key "wait" at fruit.wait'),
            ("nothing.at.all=1", 'unknown key "nothing"'),
            ("taps.7=1", "index from 0 to 1"),
            ("taps.x=1", "index from 0 to 1"),
            ("learning_rate.x=1", "learning_rate"),
            ("learning_rate=[", "not a YAML value"),
            ("learning_rate=__import__('os')", "valid number"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, override: str, says: str) -> None:
        assert says in override_refused(override)

    @given(st.floats(min_value=1e-12, max_value=1e12))
    def test_every_number_survives(self, value: float) -> None:
        assert apply_overrides(Basket(), [f"learning_rate={value!r}"]).learning_rate == value

    @given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])))
    def test_any_text_is_a_label_or_a_config_error(self, text: str) -> None:
        try:
            label = apply_overrides(Basket(), [f"label={text}"]).label
        except ConfigError:
            return
        assert isinstance(label, str)
