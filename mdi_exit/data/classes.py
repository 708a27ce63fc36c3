"""A data set's classes and a model's: the same by name, whatever their order."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["class_map", "folded", "known_classes"]


def folded(name: str) -> str:
    """``T-shirt/top`` cannot name a folder; ``t-shirt top`` and ``TShirt_Top`` can, and mean the same."""
    return "".join(char for char in name.casefold() if char.isalnum())


def known_classes(labels: Sequence[str]) -> dict[str, int]:
    """Classes by their folded name; names that fold to the same are left out."""
    names = [folded(label) for label in labels]
    return {name: number for number, name in enumerate(names) if name and names.count(name) == 1}


def class_map(classes: Sequence[str], labels: Sequence[str]) -> dict[int, int]:
    """The model's class for each class of the data set; a model without ``labels`` has the data set's own."""
    if not labels or tuple(labels) == tuple(classes):
        return {number: number for number in range(len(classes))}
    known = known_classes(labels)
    return {number: known[name] for number, label in enumerate(classes) if (name := folded(label)) in known}
