import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.dicom.person_name import alternatives, fold, matches

NAMES = st.text(st.sampled_from("AÀàéçœŒæßŸ ’'-^=*?\\aZ山が－＊łı\u0301"), max_size=24)


@pytest.mark.req("REQ-DCM-33")
@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ("LEFÈVRE^Anaïs", "LEFEVRE^*"),
        ("LEFÈVRE^Anaïs", "lefèvre^anais"),
        ("Cœurdevey^Zoé", "COEURDEVEY^ZOE"),
        ("COEURDEVEY^ZOE", "cœurdevey^zoé"),
        ("François^Ælis", "FRANCOIS^AELIS"),
        ("Weiß^Jörg", "WEISS^JORG"),
        ("D’Été^Luc", "D'ETE^LUC"),
        ("D'Été^Luc", "d’ete^luc"),
        ("MARTIN-PETIT^Jean-Luc", "MARTIN PETIT^JEAN LUC"),
        ("MARTIN  PETIT ^Jean", "MARTIN-PETIT^JEAN"),
        ("DUPONT^Anne^^^", "DUPONT^Anne"),
        ("DUPONT^Anne", "DUPONT^Anne^^^"),
        ("DUPONT^Anne==", "DUPONT^Anne"),
        ("DUPONT", "DUPONT^*"),
        ("DUPONT^Anne", "D?PONT^*"),
        ("DUPONT^Anne", "DUP*"),
        ("DUPONT^Anne", "*"),
        ("DUPONT^Anne", ""),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "YAMADA^*"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田^太郎"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "やまだ*"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^*=山田^*"),
        ("Yamada^Tarou=山田^太郎", "=山田^太郎"),
    ],
)
def test_names_that_mean_the_same_match(stored: str, key: str) -> None:
    assert matches(fold(stored), key)


@pytest.mark.req("REQ-DCM-33")
@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ("LEFÈVRE^Anaïs", "LEFEVRE"),  # without a wildcard the whole value must match
        ("DUPONT^Anne", "DUPOND^Anne"),
        ("DUPONT^Anne", "DUPONT^A?"),
        ("DUPONT^Anne", "DUPONT^Anne=*^*"),
        ("Yamada^Tarou=山田^太郎", "*=やまだ*"),
        ("かと", "がと"),  # dakuten makes another syllable, it is no accent
    ],
)
def test_names_that_differ_do_not_match(stored: str, key: str) -> None:
    assert not matches(fold(stored), key)


def test_a_wildcard_for_trailing_components_also_asks_for_names_without_them() -> None:
    assert alternatives("LEFÈVRE^*^*") == ("lefevre^*^*", "lefevre^*", "lefevre")
    assert alternatives("LEFÈVRE*") == ("lefevre*",)


def test_wide_forms_do_not_become_delimiters_or_wildcards() -> None:
    assert fold("ＡＢ＝Ｃ＾Ｄ") == "ab c d"
    assert fold("ＡＢ＊") == "ab"


@given(NAMES)
def test_folding_is_idempotent_and_keeps_the_structure(name: str) -> None:
    folded = fold(name)
    assert fold(folded) == folded
    assert folded.count("^") <= name.count("^") and folded.count("=") <= name.count("=")
    assert folded.count("*") == name.count("*") and folded.count("?") == name.count("?")


@given(NAMES.filter(lambda name: "=" not in name and "\\" not in name))
def test_a_name_matches_itself_in_any_case(name: str) -> None:
    assert matches(fold(name), name)
    assert matches(fold(name), name.upper())
