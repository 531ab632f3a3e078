import pytest

from qeff_engine.library.transformation import Transformation


class Wrapped:
    transform = Transformation()

    def __init__(self, model=None):
        self.model = model

    @classmethod
    def of_loaded(cls, model):
        return model if isinstance(model, cls) else cls(model)


def test_of_an_object_it_returns_the_object():
    wrapped = Wrapped()
    assert wrapped.transform() is wrapped
    assert wrapped.transform(form_factor="cloud") is wrapped


def test_of_the_class_it_wraps_a_model_and_leaves_a_wrapped_one():
    wrapped = Wrapped.transform("a model", form_factor="cloud")
    assert wrapped.model == "a model"
    assert Wrapped.transform(wrapped) is wrapped


@pytest.mark.parametrize("call", [Wrapped().transform, lambda **kw: Wrapped.transform("a model", **kw)])
def test_another_form_factor_is_a_value_error_that_lists_what_exists(call):
    with pytest.raises(ValueError, match="form_factor is 'edge', expected one of: cloud"):
        call(form_factor="edge")
    with pytest.raises(TypeError):
        call(type="Transformers")
