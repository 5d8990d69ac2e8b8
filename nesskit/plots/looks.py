"""How each method is drawn and written, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nesskit.plots.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION


@dataclass(frozen=True)
class Look:
    """How a method is drawn; no two methods share colour and line style."""

    colour: str
    line: str
    marker: str


METHOD_LOOKS: dict[str, Look] = {
    "ness": Look(BLUE, "-", "o"),
    "finetune": Look(VERMILLION, "-", "s"),
    "joint": Look(INK, "--", "_"),
    "gpm": Look(GREEN, "-", "^"),
    "sgp": Look(GREEN, "--", "v"),
    "trgp": Look(PURPLE, "-", "D"),
    "dfgp": Look(PURPLE, "--", "d"),
    "fs-dgpm": Look(GREEN, "-.", "H"),
    "adam-nscl": Look(ORANGE, "-", "P"),
    "owm": Look(ORANGE, "--", "X"),
    "ewc": Look(GREY, "-", "<"),
    "a-gem": Look(GREY, "--", ">"),
    "ness-soft": Look(SKY, "-", "h"),
    "ness-budget": Look(SKY, "--", "p"),
    "ness-private": Look(BLUE, "--", "*"),
    "hat": Look(SKY, "-.", "8"),
    "frozen": Look(INK, ":", "|"),
    "lora": Look(VERMILLION, "--", "x"),
    "o-lora": Look(VERMILLION, "-.", "+"),
}


_DISPLAY_NAMES = {
    "ness": "NESS",
    "finetune": "fine-tuning",
    "joint": "joint training",
    "adam-nscl": "Adam-NSCL",
    "ness-soft": "NESS-soft",
    "ness-budget": "NESS-budget",
    "ness-private": "NESS-private",
    "frozen": "frozen backbone",
    "lora": "LoRA",
    "o-lora": "O-LoRA",
}


def display_name(label: str) -> str:
    """How a method is written in a figure: ``ness (eps=0.02)`` becomes ``NESS (eps=0.02)``, ``gpm`` GPM."""
    method, blank, details = label.partition(" ")
    if method in METHOD_LOOKS:
        method = _DISPLAY_NAMES.get(method, method.upper())
    return method + blank + details


def method_looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for every label: the fixed one of its method, and for further settings of a method another line style.

    A label is a method's name, or as in a comparison that name with settings behind it: ``ness (eps=0.02)``.
    """
    looks: dict[str, Look] = {}
    for label in labels:
        own = METHOD_LOOKS.get(label.partition(" ")[0], METHOD_LOOKS["ness"])
        taken = {(look.colour, look.line) for look in looks.values()}
        looks[label] = next((look for look in _alternatives(own) if (look.colour, look.line) not in taken), own)
    return looks


def _alternatives(own: Look) -> Iterator[Look]:
    """``own``, then other line styles of its colour, then everything else."""
    yield own
    markers = [look.marker for look in METHOD_LOOKS.values() if look.marker != own.marker]
    colours = [own.colour, *(c for c in (GREEN, PURPLE, ORANGE, SKY, GREY, VERMILLION, BLUE) if c != own.colour)]
    for number, (colour, line) in enumerate((c, s) for c in colours for s in ("-", "--", "-.", ":")):
        yield Look(colour, line, markers[number % len(markers)])
