"""Methods by name: one file each, all with the contract of base.py."""

from __future__ import annotations

from nesskit import userfiles
from nesskit.errors import UnknownNameError
from nesskit.methods.adam_nscl import AdamNSCL
from nesskit.methods.agem import AGEM
from nesskit.methods.base import Method
from nesskit.methods.dfgp import DFGP
from nesskit.methods.ewc import EWC
from nesskit.methods.finetune import Finetune
from nesskit.methods.frozen import Frozen
from nesskit.methods.fs_dgpm import FSDGPM
from nesskit.methods.gpm import GPM
from nesskit.methods.hat import HAT
from nesskit.methods.joint import Joint
from nesskit.methods.lora import LoRA
from nesskit.methods.ness import NESS
from nesskit.methods.ness_budget import NESSBudget
from nesskit.methods.ness_private import NESSPrivate
from nesskit.methods.ness_soft import NESSSoft
from nesskit.methods.o_lora import OLoRA
from nesskit.methods.owm import OWM
from nesskit.methods.sgp import SGP
from nesskit.methods.trgp import TRGP
from nesskit.settings import MethodSettings, load_method

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        NESS,
        NESSSoft,
        NESSBudget,
        NESSPrivate,
        Finetune,
        Joint,
        GPM,
        SGP,
        TRGP,
        DFGP,
        FSDGPM,
        AdamNSCL,
        EWC,
        AGEM,
        OWM,
        HAT,
        Frozen,
        LoRA,
        OLoRA,
    )
}

__all__ = [
    "AGEM",
    "DFGP",
    "EWC",
    "FSDGPM",
    "GPM",
    "HAT",
    "METHODS",
    "NESS",
    "OWM",
    "SGP",
    "TRGP",
    "AdamNSCL",
    "Finetune",
    "Frozen",
    "Joint",
    "LoRA",
    "Method",
    "NESSBudget",
    "NESSPrivate",
    "NESSSoft",
    "OLoRA",
    "make_method",
]


def make_method(name: str, settings: MethodSettings | None = None) -> Method:
    """The method called ``name`` or a user's own, ``path.py:Name``, with its default settings unless some are given.

    Raises:
        UnknownNameError: no method of that name; says which is nearest.
        UserFileError: the user's file is missing, fails to import or holds no such method.
    """
    reference = userfiles.parse_reference(name)
    if reference:
        own: Method = load_method(reference)(settings)
        return own
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name](settings)
