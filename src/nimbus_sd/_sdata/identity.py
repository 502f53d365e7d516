"""What decides the result of a prediction, in JSON's types: the key of its journal."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.place import as_url
from nimbus_sd.models.hub import cache_folder

if TYPE_CHECKING:  # normalisation comes by here, and needs no torch
    from distributed import Client
    from torch import nn

    from nimbus_sd._sdata.samples import SampleSet
    from nimbus_sd.engine.normalization import Normalization
    from nimbus_sd.engine.run import Runner
    from nimbus_sd.engine.source import ImageSource, LabelSource
    from nimbus_sd.models.loading import LoadedModel


def active_client(client: Client | bool | None) -> Client | None:
    """The client to use: the one given, else the active one; False for none.

    Raises
    ------
    InputError
        If it is something else.
    """
    if client is None or client is True:
        if "distributed" not in sys.modules:  # nobody can have made one
            return None
        from distributed import Client as DaskClient

        try:
            return DaskClient.current()
        except ValueError:
            return None
    if client is False:
        return None
    from distributed import Client as DaskClient

    if not isinstance(client, DaskClient):
        msg = f"client={client!r}: pass a dask.distributed.Client, None (the active one) or False (none)"
        raise InputError(msg)
    return client


def about_run(
    runner: Runner,
    samples: SampleSet,
    *,
    normalization: Normalization | None,
    quantile: float,
    rule: str,
    maps: str | None,
    inputs: bool,
) -> dict[str, Any]:
    """Everything that the sums of a block depend on.

    With `inputs` alone the pixels' fingerprints, and where each image has the channels: a
    fingerprint knows planes, not what they are called.
    """
    config = runner.config
    scales = normalization.to_dict() if normalization else {"quantile": quantile, "rule": rule}
    return {
        "version": __version__,
        "weights": _weights(runner.model),
        "inputs": [
            [
                s.sample.region,
                s.sample.image.fingerprint,
                [s.sample.image.channels.index(c) for c in samples.channels],
                s.sample.labels.fingerprint,
                s.sample.mpp,
            ]
            for s in (samples.samples if inputs else ())
        ],
        "channels": list(samples.channels),
        "normalization": scales,
        "views": list(config.views),
        "precision": config.precision,
        "sums": [config.per_view, config.intensity],
        "tile": config.tile,
        "maps": maps,
    }


def homes_of(stores: Sequence[str | Path | None], samples: SampleSet) -> list[Path]:
    """Folders for the unfinished runs of stores: beside a local one, in the cache for one behind a URL.

    None at all if one of the objects has no store, a folder can't be written, or an element lies in
    memory only, so that another process could not tell that it is the same.
    """
    sources = [x for s in samples.samples for x in (s.sample.image, s.sample.labels)]
    return homes_for(stores, sources)


def homes_for(
    stores: Sequence[str | Path | None], sources: Sequence[ImageSource | LabelSource]
) -> list[Path]:
    """As :func:`homes_of`, for runs that read these images and labels."""
    homes = [_home(store) for store in stores]
    if any(x.fingerprint is None for x in sources):
        return []
    return [h for h in homes if h is not None] if all(homes) else []


def _home(store: str | Path | None) -> Path | None:
    if store is None:
        return None
    url = as_url(store)
    if url is not None:
        name = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
        return cache_folder() / "runs" / name
    path = Path(store)
    there = next(p for p in path.parents if p.is_dir())
    return path.parent / f".{path.name}.nimbus-runs" if os.access(there, os.W_OK) else None


def _weights(model: LoadedModel) -> Sequence[str]:
    """Hash of the weights, and of what the card says about their use."""
    card = model.card
    used = [card.mpp, card.transform, card.mask_rule, card.stride, card.halo, dict(card.architecture)]
    if model.path is not None and card.sha256:
        return [card.sha256, json.dumps(used)]
    return [weights_digest(model.net), json.dumps(used)]


def weights_digest(net: nn.Module) -> str:
    """Hash of a network's weights as they are in memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
