"""What tests of nimbus_sd, and of models for it, stand on: fakes, counters, oracles, strategies.

``nimbus_sd.testing.strategies`` needs hypothesis and is imported on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.testing.counting import CountedArray
    from nimbus_sd.testing.fakes import (
        DirectionalNet,
        directional_model,
        tiny_embedding_model,
        tiny_subtype_model,
        tiny_unet_model,
    )
    from nimbus_sd.testing.fields import random_image, random_labels
    from nimbus_sd.testing.oracle import whole_image_scores

__all__ = [
    "CountedArray",
    "DirectionalNet",
    "directional_model",
    "random_image",
    "random_labels",
    "tiny_embedding_model",
    "tiny_subtype_model",
    "tiny_unet_model",
    "whole_image_scores",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CountedArray": "counting",
        "DirectionalNet": "fakes",
        "directional_model": "fakes",
        "random_image": "fields",
        "random_labels": "fields",
        "tiny_embedding_model": "fakes",
        "tiny_subtype_model": "fakes",
        "tiny_unet_model": "fakes",
        "whole_image_scores": "oracle",
    },
)
