"""The registry: names, mixtures, and a helpful answer to a wrong name."""

import pytest

import ministudio


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setattr(ministudio, "__modules__", dict(ministudio.__modules__))


def test_register_and_find(names):
    @ministudio.register("thing")
    class Thing:
        pass

    assert ministudio.find("thing") is Thing
    with pytest.raises(ValueError, match='"thing" is registered already'):
        ministudio.register("thing")(type("Other", (), {}))


def test_mixins_come_first_and_the_main_class_last(names):
    for name in ("a", "b", "c"):
        ministudio.register(name)(type(name.upper(), (), {"who": name}))
    mixed = ministudio.find("a:b,c")
    assert [base.__name__ for base in mixed.__bases__] == ["B", "C", "A"]
    assert (mixed.__name__, mixed.who) == ("a.b,c", "b")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ministudio.UserError, match="did you mean .*no-material"):
        ministudio.find("no-materal")


def test_the_built_in_modules_are_there():
    for name in ("random-camera-datamodule", "dreamfusion-system", "diffuse-with-point-light-material", "no-material",
                 "solid-color-background", "neural-environment-map-background", "stable-diffusion-prompt-processor",
                 "deep-floyd-prompt-processor"):  # fmt: skip
        assert isinstance(ministudio.find(name), type)
