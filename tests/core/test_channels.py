"""Which channels ``"auto"`` leaves out."""

import pytest

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import ElementNotFoundError, InputError, MissingExtraError, NimbusError

MARKERS = [
    "CD3",
    "CD45",
    "PD-1",
    "Pan-Keratin",
    "HLA-DR",
    "Ki67",
    "SMA",
    "Vim",
    "H3K27me3",
    "P53",
    "Calprotectin",
    "PAX5",
    "CD4",
    "DCSIGN",
    "NaKATPase",
]
OTHERS = [
    "DAPI",
    "dapi",
    "DAPI_2",
    "Hoechst-1",
    "DRAQ5",
    "DNA",
    "DNA1",
    "DNA_2",
    "Ir191",
    "191Ir_DNA1",
    "Ir193_DNA2",
    "Ir-193",
    "HH3",
    "H3",
    "Histone",
    "Histone_H3",
    "nucleus",
    "Nuclear",
    "blank",
    "Blank_4",
    "Empty-1",
    "background",
    "bg",
    "Noodle",
    "AF",
    "Autofluorescence_488",
    "Si",
    "Na",
    "Fe",
    "Au",
    "Ta",
    "C",
]


@pytest.mark.parametrize("name", MARKERS)
def test_markers_stay(name):
    assert select_channels([name], "auto", where="i") == ([name], [])


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_marker_goes(name):
    assert select_channels(["CD3", name], "auto", where="i") == (["CD3"], [name])


def test_all_and_named_keep_what_auto_leaves_out():
    assert select_channels(["CD3", "DAPI"], "all", where="i") == (["CD3", "DAPI"], [])
    assert select_channels(["CD3", "DAPI"], ["DAPI", "CD3"], where="i") == (["DAPI", "CD3"], [])
    assert select_channels(["CD3", "DAPI"], "DAPI", where="i") == (["DAPI"], [])
    assert select_channels(["CD3", "x1"], "auto", where="i", exclude=r"x\d") == (["CD3"], ["x1"])


def test_errors_are_errors_of_python_too():
    with pytest.raises(KeyError) as caught:
        select_channels(["CD3"], ["CD4"], where="slide")
    assert isinstance(caught.value, ElementNotFoundError)
    assert str(caught.value) == "image 'slide' has no channel ['CD4']; valid: CD3"
    assert issubclass(InputError, ValueError)
    assert issubclass(MissingExtraError, ImportError)
    for error in (ElementNotFoundError, InputError, MissingExtraError):
        assert issubclass(error, NimbusError)
    with pytest.raises(ValueError, match=r"'slide' has duplicated channel names \['a'\]"):
        select_channels(["a", "b", "a"], "all", where="slide")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("cd3", "'cd3'] (did you mean CD3?);"),
        ("Pan CK", "'Pan CK'] (did you mean PanCK?);"),
        ("Colagen1", "'Colagen1'] (did you mean Collagen1?);"),
        ("CD4", "'CD4']; valid"),
        ("CD11b", "'CD11b']; valid"),
        ("CD31", "'CD31']; valid"),
        ("", "'']; valid"),
    ],
)
def test_a_name_that_is_nearly_right(wanted, said):
    with pytest.raises(ElementNotFoundError) as caught:
        select_channels(["CD3", "PanCK", "Collagen1", "CD11c", "α"], [wanted], where="i")
    assert said in str(caught.value)
