"""Which changes of the recipe own the change of the weights, as bars."""

from __future__ import annotations

from collections.abc import Sequence

from personality.composition.weight_diff import Owner
from personality.difference.page.figures import number, percentage
from personality.difference.page.markup import Markup, element
from personality.versions.recipe import RecipeChange


def owner_bars(owners: Sequence[Owner], recipe: Sequence[RecipeChange]) -> Markup:
    """One bar each, from 0 to its share; those that point against the change go to the left."""
    changes = {change.what: str(change) for change in recipe}
    low = min(0.0, *(owner.share for owner in owners))
    high = max(1.0, *(owner.share for owner in owners))
    rows = []
    for owner in owners:
        begin, end = sorted((0.0, owner.share))
        left, right = (100 * (end_ - low) / (high - low) for end_ in (begin, end))
        kind = "bar against" if owner.share < 0 else "bar"
        zero = 100 * -low / (high - low)
        bar = element(
            "svg",
            element("title", f"{owner.what} owns {percentage(owner.share)} of the change"),
            element("rect", x="0", y=4, width="100%", height=10, rx=5, class_="track"),
            element("rect", x=f"{left:.2f}%", y=4, width=f"{right - left:.2f}%", height=10, rx=5, class_=kind),
            element("line", x1=f"{zero:.2f}%", x2=f"{zero:.2f}%", y1=0, y2=18, class_="zero") if low < 0 else None,
            role="img",
            width="100%",
            height=18,
            aria_label=f"{owner.what}: {percentage(owner.share)}",
        )
        rows.append(
            element(
                "li",
                element("span", changes.get(owner.what, owner.what), class_="owner-name"),
                element("span", bar, class_="owner-bar"),
                element("span", percentage(owner.share), class_="figure"),
                tabindex="0",
                data_tip=f"{owner.what}: {percentage(owner.share)} of ‖change‖²\nnorm of its part {number(owner.norm)}",
            )
        )
    return element("ul", rows, class_="owners")
