"""The picture of a search: a column a sample, a row a choice; who went on is framed, who did not is pale."""

from __future__ import annotations

from PIL import Image, ImageColor

from dina_lrm.report.pruning import DROPPED, GAP, KEPT, LABEL, LINE, Candidate, Choice, pruning_picture

BLUE = (0, 0, 255)
TILE = 40


def candidate(number: int, kept: bool, reward: float | None = 1.5, size: tuple[int, int] = (8, 8)) -> Candidate:
    return Candidate(number, Image.new("RGB", size, BLUE), reward, kept)


def test_rows_are_choices_and_columns_are_samples() -> None:
    first = Choice("sigma 0.70", (candidate(4, True), candidate(7, False), candidate(9, True)))
    second = Choice("finished", (candidate(9, True, None),))
    whole = pruning_picture("a red fox", [first, second], tile=TILE)

    def centre(column: int, row: int) -> tuple[int, ...]:
        x = LABEL + column * (TILE + GAP) + TILE // 2
        return whole.getpixel((x, LINE + 2 * GAP + row * (TILE + LINE + 2 * GAP) + TILE // 2))

    assert centre(0, 0) == centre(2, 0) == centre(2, 1) == BLUE
    assert centre(1, 0)[0] > 100  # pale
    assert centre(0, 1) == centre(1, 1) == (255, 255, 255)
    colours = {colour for _, colour in whole.getcolors(1 << 20)}
    assert {ImageColor.getrgb(KEPT), ImageColor.getrgb(DROPPED)} <= colours


def test_the_sides_of_a_picture_keep_their_ratio() -> None:
    whole = pruning_picture("wide", [Choice("finished", (candidate(0, True, size=(16, 8)),))], tile=TILE)
    blue = [(x, y) for x in range(whole.width) for y in range(whole.height) if whole.getpixel((x, y)) == BLUE]
    across, down = ({place[axis] for place in blue} for axis in (0, 1))
    assert (len(across), len(down)) == (TILE, TILE // 2)
