"""``nb.app.review``: look at clusters and single cells in the browser, and correct them."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd.app._browser import open_page
from nimbus_sd.app._server import ReviewServer
from nimbus_sd.app._session import Session


def review(
    sdata: SpatialData,
    *,
    table: str = "nimbus",
    key: str | None = None,
    layer: str | None = None,
    image: str | Mapping[str, str] | None = None,
    threshold: float = 0.5,
    log: str | Path | None = None,
    reviewer: str | None = None,
    port: int = 0,
    open_browser: bool = False,
) -> ReviewServer:
    """Serve a page to review a table: clusters, the tissue, and the least certain cells.

    The page merges, names and un-merges clusters, shows markers, cells and outlines of
    the tissue, and asks whether cells are positive. Every answer is at once in
    ``layers["gold"]`` (1 positive, 0 negative, NaN undefined) and on the disk: in a log
    beside the store, ``<store>.<table>.review.jsonl``, which is only appended to and is
    read again at the next start. Edits of clusters are logged too. *Save* on the page, or
    :meth:`ReviewServer.save`, writes the table into the store.

    The server listens on 127.0.0.1 alone and serves nobody without the token in its
    address. The page needs nothing from the internet.

    Parameters
    ----------
    sdata
        Object with images, labels and an annotating table of scores.
    table
        Its name.
    key
        Column of ``obs`` with the clusters; None takes ``"metacluster"``, ``"leiden"``,
        ``"phenotype"`` or ``"cell_type"``, the first that there is.
    layer
        Layer with the scores; None takes ``X``.
    image
        As in :func:`nimbus_sd.tl.predict`.
    threshold
        Score above which the model says positive; cells near it are asked for first.
    log
        Path of the log; None puts it beside a local store, and into the cache folder for a
        store behind a URL. An object in memory has none unless it is given: then answers
        live in memory only.
    reviewer
        Name that the page suggests; None takes the user's.
    port
        0 takes a free one.
    open_browser
        Also open the page, on machines with a screen.

    Returns
    -------
    :class:`ReviewServer`, running in the background: ``url`` is the page's address,
    ``wait()`` serves until Ctrl-C, ``stop()`` ends it.

    Raises
    ------
    ElementNotFoundError
        If the table, a layer, column or image does not exist.
    InputError
        If the table annotates no labels of the object, has no coordinates, its gold
        layer holds something else than 1, 0 and NaN, or the log can't be written.
    MissingExtraError
        Without starlette and uvicorn, which ``nimbus-sd[review]`` brings.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(96, 96), channels=["CD3", "CD20"])
    >>> nb.tl.predict(sdata, progress=False)
    >>> page = nb.app.review(sdata)
    >>> page.url.startswith("http://127.0.0.1:"), page.running
    (True, True)
    >>> page.stop()
    """
    session = Session(sdata, table=table, key=key, layer=layer, image=image, threshold=threshold, log=log)
    server = ReviewServer(session, port=port, reviewer=user_name() if reviewer is None else reviewer)
    if open_browser:
        open_page(server.url)
    return server


def user_name() -> str:
    """The user's name on this machine; empty where it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
