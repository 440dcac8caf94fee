"""What noise is: forward processes, distributions over sigma, seeded draws."""

from dina_lrm.noise.draws import seeded_noise
from dina_lrm.noise.ensembles import Adaptive, Fusion, NoiseEnsemble
from dina_lrm.noise.levels import Beta, Constant, Levels, LogitNormal, Mode, Power, Stratified, Uniform
from dina_lrm.noise.process import ForwardProcess, RectifiedFlow, VariancePreserving

__all__ = [
    "Adaptive",
    "Beta",
    "Constant",
    "ForwardProcess",
    "Fusion",
    "Levels",
    "LogitNormal",
    "Mode",
    "NoiseEnsemble",
    "Power",
    "RectifiedFlow",
    "Stratified",
    "Uniform",
    "VariancePreserving",
    "seeded_noise",
]
