"""Colours that stay apart for any colour vision."""

from __future__ import annotations

import pytest

from hmsa_core.taxonomy import cityscapes
from pipeline.inspector.pictures import safe_colours, smallest_distance


def test_the_safe_palette_keeps_classes_farther_apart_than_the_data_sets_own_colours() -> None:
    own = smallest_distance(list(cityscapes().colours))
    assert smallest_distance(list(safe_colours(19))) > 3 * own


@pytest.mark.parametrize("count", [1, 11, 19, 65, 123, 200])
def test_every_class_gets_a_colour_of_its_own(count: int) -> None:
    colours = safe_colours(count)
    assert len(set(colours)) == count
    assert all(0 <= value <= 255 for colour in colours for value in colour)


def test_more_classes_keep_the_colours_of_fewer() -> None:
    assert safe_colours(30)[:19] == safe_colours(19)
