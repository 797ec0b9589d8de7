import pytest


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("path", "", "data.path = '' is not allowed: it must be a non-empty string"),
        ("text_field", "", "data.text_field = '' is not allowed"),
        ("tokenizer", "", "data.tokenizer = '' is not allowed"),
        ("cache_dir", "", "data.cache_dir = '' is not allowed"),
        ("tokenizer_vocab", 0, "data.tokenizer_vocab = 0 is not allowed: it must be 1 or more"),
        ("held_out", 0.0, "data.held_out = 0.0 is not allowed: it must be a fraction, above 0 and below 1"),
        ("held_out", 1.0, "data.held_out = 1.0 is not allowed"),
        ("held_out_by", "tial", "data.held_out_by = 'tial' is not allowed: it must be one of document, tail"),
        ("prefetch", -1, "data.prefetch = -1 is not allowed: it must be 0 or more"),
        ("held_out", "0.1", "data.held_out = '0.1' is a str: it must be float"),
        ("prefetch", True, "data.prefetch = True is a bool: it must be int"),
        ("document_separator", None, "data.document_separator = None is a NoneType: it must be str"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(config, field, value, message):
    with pytest.raises(ValueError) as error:
        config(**{field: value})
    assert message in str(error.value)


def test_good_values_pass(config):
    made = config(document_separator="\n\n", prefetch=0, held_out_by="tail", held_out=0.5)
    assert (made.document_separator, made.prefetch, made.held_out_by, made.held_out) == ("\n\n", 0, "tail", 0.5)
