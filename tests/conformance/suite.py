"""The suite: derive from `BackboneSuite` in a test file, and give it a `case`. How is in the package's docstring."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from dina_lrm.backbones import Backbone
from dina_lrm.types import Conditioning, Features, NoisedState
from tests.conformance.case import ADAPTER, PROMPTS, Case, teach
from tests.conformance.encoding import EncodingTests
from tests.conformance.features import FeatureTests
from tests.conformance.learning import LearningTests
from tests.conformance.loading import LoadingTests
from tests.conformance.sharing import SharingTests


class Fixtures:
    """What several tests read is built once a case, and none of them changes it."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        pytest.fail("a suite needs a case: override this fixture")

    @pytest.fixture(scope="class")
    @classmethod
    def pipeline(cls, case: Case) -> Any:
        """The whole pipeline as its own library loads it."""
        return DiffusionPipeline.from_pretrained(case.folder)

    @pytest.fixture
    def callers(self, case: Case, pipeline: Any) -> Any:
        """A pipeline of somebody else, with networks of its own: should a backbone change them, other tests do not suffer."""
        parts = {name: copy.deepcopy(p) for name, p in pipeline.components.items() if isinstance(p, nn.Module)}
        others = {name: p for name, p in pipeline.components.items() if p is not None and name not in parts}
        return DiffusionPipeline.from_pretrained(case.folder, **parts, **others)

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, case: Case) -> Backbone:
        """The bare base, from its folder."""
        return case.load()

    @pytest.fixture(scope="class")
    @classmethod
    def adapted(cls, case: Case, pipeline: Any) -> Backbone:
        """The same with an adapter that says something."""
        return teach(case.load(pipeline, adapter=ADAPTER))

    @pytest.fixture(scope="class")
    @classmethod
    def halved(cls, case: Case) -> Backbone:
        """The bare base in half precision."""
        return case.load(None, torch.bfloat16)

    @pytest.fixture(scope="class")
    @classmethod
    def state(cls, case: Case) -> NoisedState:
        return case.state()

    @pytest.fixture(scope="class")
    @classmethod
    def conditioning(cls, case: Case, backbone: Backbone) -> Conditioning:
        return backbone.encode_prompts(PROMPTS, case.lengths[0])

    @pytest.fixture(scope="class")
    @classmethod
    def features(cls, backbone: Backbone, state: NoisedState, conditioning: Conditioning) -> Features:
        """Of the bare base."""
        return backbone.features(state, conditioning)


class BackboneSuite(Fixtures, FeatureTests, EncodingTests, LoadingTests, LearningTests, SharingTests):
    """Every backbone passes these."""


class VariantSuite(Fixtures, FeatureTests, LearningTests):
    """And these on each further kind of network that it reads, on the same pipeline class."""
