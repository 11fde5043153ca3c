"""Fusion of modalities by a gate whose weights are kept at a target. Needs the extra ``gates`` (torch).

from trimtab.fusion import ModalityGate
"""

from trimtab.fusion.gate import GateNetwork, ModalityGate
from trimtab.fusion.methods import METHODS
from trimtab.fusion.model import FusionModel
from trimtab.fusion.views import Views, read_folder

__all__ = ["METHODS", "FusionModel", "GateNetwork", "ModalityGate", "Views", "read_folder"]
