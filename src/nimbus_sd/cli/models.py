"""``nimbus-sd models``: which weights there are, and their cards."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    name: Annotated[str | None, typer.Argument(help="Show the whole card of this model.")] = None,
) -> None:
    """List the registered models, or print one card."""
    from nimbus_sd.models.registry import cards, get_card

    if name is not None:
        typer.echo(get_card(name).to_json(), nl=False)
        return
    for card in cards().values():
        origin = "downloaded on first use" if card.weights_url else "bundled"
        typer.echo(f"{card.name:<14} {card.mpp:g} µm/px  {origin}  licence: {card.licence}")
