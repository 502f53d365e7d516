"""A published MIBI field end to end: lazily read, scored in tiles, as its whole image says."""

import numpy as np
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import NimbusWarning

FIELD = "fov2204"


@pytest.fixture(scope="module")
def field(real_data, tmp_path_factory):
    """One field, as a folder of the published tool's layout."""
    source = real_data / "mibi_breast_dcis"
    target = tmp_path_factory.mktemp("dcis")
    (target / "image_data").mkdir()
    (target / "image_data" / FIELD).symlink_to(source / "image_data" / FIELD)
    return nb.io.read_fovs(target / "image_data", labels=source / "segmentation", mpp=0.488)


def test_scores_of_a_real_field_do_not_depend_on_tiles(field, score):
    labels = next(iter(field.labels))
    whole = score(field, channels=["CD3", "CD45", "PanKRT"], table="whole")
    tiles = score(field, channels=["CD3", "CD45", "PanKRT"], table="tiles", tile=128, batch_size=1)
    np.testing.assert_allclose(tiles.X, whole.X, atol=1e-5)
    ids = np.unique(np.asarray(field[labels].data))
    assert whole.obs["instance_id"].tolist() == ids[ids > 0].tolist()
    assert whole.n_obs > 500
    assert (tiles.obs["n_tiles"] > 1).any()


def test_scales_and_empty_channels_of_a_real_field(field):
    image = np.asarray(next(iter(field.images.values())).data)
    empty = [c for c, plane in enumerate(image) if not plane.any()]
    with pytest.warns(NimbusWarning) as caught:
        fitted = nb.pp.normalization(field, channels="all", progress=False)
    said = [str(w.message).partition(" (")[0] for w in caught]
    assert said == ["empty channels: CD56, FOXP3, GZMB, MPO, PD1", "sparse channels: AR, P63, PDL1"]
    assert [c for c, flag in enumerate(fitted.flags) if flag == "empty"] == empty
    expected = np.quantile(image.reshape(len(image), -1), 0.9999, axis=1)
    expected[empty] = 1.0
    sparse = [c for c, flag in enumerate(fitted.flags) if flag == "sparse"]
    expected[sparse] = image[sparse].max(axis=(1, 2))
    np.testing.assert_allclose(fitted.scale, expected)
