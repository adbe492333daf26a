"""What stands along the street: house rows, villas, halls, walls, fences, hedges, parks, car parks."""

from __future__ import annotations

from dataclasses import replace

from examples.streets.canvas import Canvas, Colour, Material
from examples.streets.nature import draw_bush, draw_hedge, draw_tree, tree_line
from examples.streets.palette import BRIGHT, FACADES, FENCES, GREENS, MASONRY, METAL, VEHICLE, WALLS, livery, vary
from examples.streets.rng import Rng
from examples.streets.solids import Frame
from examples.streets.street import Lot, Street
from examples.streets.textures import FacadeStyle, asphalt, bars, bricks, coped, facade, foliage, mix, panels, plain
from examples.streets.vehicles import draw_vehicle

__all__ = ["draw_backdrop", "draw_lot"]


def draw_lot(canvas: Canvas, street: Street, lot: Lot) -> None:
    """Paint one lot with its ground; far lots first."""
    front = street.front(lot.side)
    painter = {
        "building": _building_row,
        "house": _house,
        "hall": _hall,
        "wall": _wall,
        "fence": _fence,
        "hedge": _hedge,
        "park": _park,
        "field": _park,
        "parking": _car_park,
        "guard rail": _guard_rail,
        "gap": _park,
    }[lot.kind]
    painter(canvas, street, lot, front)


def _upright(
    canvas: Canvas, x: float, s0: float, s1: float, height: float, material: Material | Colour, light: int
) -> None:
    canvas.plane([(x, 0.0, s0), (x, 0.0, s1), (x, height, s1), (x, height, s0)], material, light=light)


def _end(
    canvas: Canvas, x0: float, x1: float, s: float, height: float, material: Material | Colour, light: int
) -> None:
    canvas.plane([(x0, 0.0, s), (x1, 0.0, s), (x1, height, s), (x0, height, s)], material, light=light)


def _lawn(canvas: Canvas, lot: Lot, front: float, depth: float = 45.0, kind: str = "terrain") -> None:
    colour = vary(lot.rng.fork("lawn"), lot.rng.fork("lawn colour").choice((*GREENS, (112, 104, 80))), 10)
    material: Material = foliage(colour, lot.rng.fork("lawn salt").integer(0, 99), 60)
    if kind == "parking":
        material = asphalt(vary(lot.rng.fork("lawn"), (100, 98, 98), 12), 7)
    far = front + lot.side * depth
    with canvas.label(kind):
        canvas.plane(
            [(front, 0.0, lot.start), (far, 0.0, lot.start), (far, 0.0, lot.end), (front, 0.0, lot.end)],
            material,
            basis=((0.0, 0.0, lot.start), (1.0, 0.0, lot.start), (0.0, 0.0, lot.start + 1.0)),
        )


def _facade_style(rng: Rng, *, shops: bool) -> FacadeStyle:
    wall = vary(rng, livery(rng, FACADES, MASONRY), 14)
    bay = rng.integer(1700, 3200)
    return FacadeStyle(
        wall=wall,
        frame=rng.choice(((206, 202, 194), mix(wall, (30, 30, 30), 90), mix(wall, (240, 240, 236), 120))),
        glass=vary(rng, (62, 70, 78), 14),
        bay=bay,
        floor=rng.integer(2900, 3700),
        sill=rng.integer(700, 1000),
        window=(int(bay * rng.uniform(0.4, 0.7)), rng.integer(1300, 1900)),
        ground_floor=rng.integer(3400, 4200) if shops else 0,
        courses=rng.weighted(((0, 3), (140, 1), (240, 1))),
        lit=60 if rng.chance(0.25) else 6,
    )


def _building_row(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("building")
    height = rng.uniform(7.0, 19.0)
    front += lot.side * rng.choice((0.0, 0.0, 0.6))
    _block(
        canvas,
        street,
        lot,
        front,
        height,
        _facade_style(rng, shops=street.district == "centre" and rng.chance(0.6)),
        rng,
    )


def _block(canvas: Canvas, street: Street, lot: Lot, front: float, height: float, style: FacadeStyle, rng: Rng) -> None:
    salt = rng.integer(0, 9999)
    back = front + lot.side * rng.uniform(9.0, 13.0)
    weather = street.weather
    dull = mix(style.wall, (90, 90, 90), 50)
    gable = facade(replace(style, wall=dull, ground_floor=0), salt + 1) if rng.chance(0.65) else plain(dull, salt, 9)
    with canvas.label("building"):
        if rng.chance(0.6):
            tiles = vary(rng, rng.choice(((112, 66, 52), (84, 76, 74), (96, 84, 78))), 12)
            ridge, top = (front + back) / 2.0, height + 3.4
            canvas.plane(
                [(front, height, lot.start), (back, height, lot.start), (ridge, top, lot.start)],
                gable,
                light=weather.front,
            )
            canvas.plane(
                [(front, height, lot.start), (front, height, lot.end), (ridge, top, lot.end), (ridge, top, lot.start)],
                bricks(tiles, salt, 400, 340, 14),
                light=weather.facing(lot.side),
            )
        _end(canvas, front, back, lot.start, height, gable, weather.front)
        _upright(canvas, front, lot.start, lot.end, height, facade(style, salt), weather.facing(lot.side))


def _house(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("house")
    _lawn(canvas, lot, front)
    inner = Lot(lot.kind, lot.side, lot.start + 1.5, max(lot.end - 1.5, lot.start + 4.0), lot.rng)
    set_back = front + lot.side * rng.uniform(2.5, 6.0)
    _block(canvas, street, inner, set_back, rng.uniform(4.5, 7.5), _facade_style(rng, shops=False), rng)
    for k in range(rng.integer(0, 2)):
        (draw_tree if rng.chance(0.4) else draw_bush)(
            canvas, front + lot.side * rng.uniform(1.0, 2.4), lot.end - 3.0 - 4.0 * k, rng
        )
    barrier = rng.choice(("wall", "fence", "hedge", "none"))
    if barrier == "hedge":
        draw_hedge(canvas, front, lot.start, lot.end, lot.side, rng, street.weather.facing(lot.side))
    elif barrier == "fence":
        _fence_panel(canvas, street, lot, front, rng, rng.uniform(1.1, 1.7))
    elif barrier == "wall":
        _wall_panel(canvas, street, lot, front, rng, rng.uniform(0.8, 1.6))


def _hall(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("hall")
    _lawn(canvas, lot, front, kind=rng.choice(("terrain", "parking")))
    x = front + lot.side * rng.uniform(1.0, 7.0)
    height = rng.uniform(5.0, 9.0)
    wall, stripe = vary(rng, livery(rng, FACADES, MASONRY), 12), vary(rng, rng.choice(BRIGHT + MASONRY), 10)
    low = rng.integer(2500, 4000)
    skin = panels(wall, stripe, rng.integer(0, 99), rng.integer(900, 2500), (low, low + rng.integer(400, 1800)))
    back = x + lot.side * 14.0
    with canvas.label("building"):
        _end(canvas, x, back, lot.start, height, plain(mix(wall, (80, 80, 80), 60), 5, 8), street.weather.front)
        _upright(canvas, x, lot.start, lot.end, height, skin, street.weather.facing(lot.side))


def _wall_panel(canvas: Canvas, street: Street, lot: Lot, front: float, rng: Rng, height: float) -> None:
    colour = vary(rng, livery(rng, WALLS, MASONRY), 14)
    salt = rng.integer(0, 999)
    material = rng.choice(
        (
            bricks(colour, salt, 700, 320, 34, 2),
            bricks(colour, salt, 1000, 420, 34, 2),
            panels(colour, mix(colour, (60, 60, 60), 60), salt, rng.integer(1500, 3500), (0, 350)),
            bricks(colour, salt, 1400, 600, 30, 2),
        )
    )
    thick = front + lot.side * 0.35
    with canvas.label("wall"):
        _end(
            canvas, front, thick, lot.start, height, plain(mix(colour, (60, 60, 60), 50), salt, 6), street.weather.front
        )
        canvas.plane(
            [
                (front, height, lot.start),
                (front, height, lot.end),
                (thick, height, lot.end),
                (thick, height, lot.start),
            ],
            mix(colour, (230, 230, 230), 40),
        )
        coped_wall = coped(material, colour, int(height * 1000), rng.integer(2600, 4200))
        _upright(canvas, front, lot.start, lot.end, height, coped_wall, street.weather.facing(lot.side))


def _wall(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("wall")
    _lawn(canvas, lot, front)
    _greenery(canvas, lot, front, rng, 3)
    height = rng.uniform(1.9, 3.6) if street.theme == "wall" else rng.uniform(1.6, 3.0)
    _wall_panel(canvas, street, lot, front, rng, height)


def _fence_panel(canvas: Canvas, street: Street, lot: Lot, front: float, rng: Rng, height: float) -> None:
    salt, top = rng.integer(0, 999), int(height * 1000)
    material = rng.choice(
        (
            bars(vary(rng, livery(rng, FENCES, MASONRY), 12), salt, 520, 340, (250, top - 250)),
            bars(vary(rng, livery(rng, FENCES, METAL), 14), salt, 460, 180, (120, top - 160), 40),
            bars(
                vary(rng, livery(rng, FENCES, VEHICLE), 12), salt, 1100, 200, (0, top // 3, 2 * top // 3, top - 90), 60
            ),
            bars(vary(rng, livery(rng, FENCES, METAL), 12), salt, 400, 160, (100, top - 100), 40),
        )
    )
    with canvas.label("fence"):
        _upright(canvas, front, lot.start, lot.end, height, material, street.weather.facing(lot.side))


def _fence(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("fence")
    _lawn(canvas, lot, front, kind=rng.choice(("terrain", "terrain", "parking")))
    _greenery(canvas, lot, front, rng, 2)
    _fence_panel(canvas, street, lot, front, rng, rng.uniform(1.7, 3.0))


def _greenery(canvas: Canvas, lot: Lot, front: float, rng: Rng, most: int) -> None:
    places = sorted((rng.uniform(lot.start, lot.end) for _ in range(rng.integer(0, most))), reverse=True)
    for s in places:
        (draw_tree if rng.chance(0.6) else draw_bush)(canvas, front + lot.side * rng.uniform(2.0, 7.0), s, rng)


def _hedge(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("hedge")
    _lawn(canvas, lot, front)
    _greenery(canvas, lot, front, rng, 2)
    draw_hedge(canvas, front, lot.start, lot.end, lot.side, rng, street.weather.facing(lot.side))


def _park(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("park")
    _lawn(canvas, lot, front)
    if lot.kind == "field":
        return
    x = front + lot.side * 16.0
    light = street.weather.facing(lot.side)
    colour = vary(rng, rng.choice(GREENS), 14)
    tree_line(
        canvas,
        (x, lot.start),
        (x, lot.end),
        rng.uniform(4.0, 9.0),
        foliage(colour, rng.integer(0, 99), 220),
        rng,
        light,
    )
    _greenery(canvas, lot, front, rng, 4)


def _car_park(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("car park")
    _lawn(canvas, lot, front, kind="parking")
    weather = street.weather
    s = lot.end - 2.0
    while s > lot.start + 1.5:
        if rng.chance(0.75):
            frame = Frame(front + lot.side * rng.uniform(3.6, 4.4), s, (float(rng.choice((-1, 1))), 0.0))
            kind = rng.weighted((("car", 20), ("trailer", 1), ("caravan", 1)))
            draw_vehicle(canvas, kind, frame, rng.fork(int(s * 10)), (270, weather.front, weather.facing(lot.side)))
        s -= 2.7


def _guard_rail(canvas: Canvas, street: Street, lot: Lot, front: float) -> None:
    rng = lot.rng.fork("rail")
    _lawn(canvas, lot, front)
    _greenery(canvas, lot, front, rng, 3)
    with canvas.label("guard rail"):
        material = bars(vary(rng, (150, 152, 152), 10), 3, 2000, 100, (450, 540, 630), 0)
        _upright(canvas, front, lot.start, lot.end, 0.75, material, street.weather.facing(lot.side))


def draw_backdrop(canvas: Canvas, street: Street, rng: Rng, depth: float) -> None:
    """Close the view at the end of the street: hills, then trees and houses of the next quarter."""
    camera = canvas.camera
    base = camera.x - camera.bend * depth * depth + camera.sin / camera.cos * depth
    far = camera.z + depth
    if rng.chance(0.3):
        with canvas.label("mountain"):
            hill = vary(rng, (96, 106, 96), 10)
            canvas.plane(
                [
                    (base - 110, 0, far),
                    (base + 110, 0, far),
                    (base + 110, 4, far),
                    (base + 40, rng.uniform(8, 16), far),
                    (base - 50, rng.uniform(6, 14), far),
                    (base - 110, 5, far),
                ],
                hill,
            )
    at = base - 90.0
    while at < base + 90.0:
        wide = rng.uniform(7.0, 18.0)
        tall = rng.uniform(3.0, 11.0)
        if rng.chance(0.45):
            leaves = foliage(vary(rng, rng.choice(GREENS), 12), rng.integer(0, 99), 400)
            tree_line(canvas, (at, far), (at + wide, far), tall, leaves, rng, street.weather.front)
        else:
            with canvas.label("building"):
                houses = facade(_facade_style(rng, shops=False), rng.integer(0, 99))
                _end(canvas, at, at + wide, far, tall, houses, street.weather.front)
        at += wide
