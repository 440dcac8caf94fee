"""What every backbone must show, as tests that any backbone can run.

A third party proves its own with one class; nothing here knows a family by name but `families` and `test_backbones`:

    class TestMine(BackboneSuite):
        @pytest.fixture(scope="class")
        @classmethod
        def case(cls, tmp_path_factory):
            return Case(folder=a_tiny_pipeline(tmp_path_factory.mktemp("mine")), config=BackboneConfig(kind="mine", ...), ...)

A further kind of network that the same backbone reads takes `VariantSuite`. `Case` says what cannot be known from outside:
a tiny pipeline in diffusers' folder format, which taps there are, how its latents are standardised, and `whole`, which runs one
step of the pipeline's own code and reads its unmodified network with hooks. A pipeline for it needs weights that hide nothing
(no zeroed gates, no equal widths), or a wrong time or a wrong text gives the right numbers.
"""

import pytest

# Assertions of modules that are no test files explain themselves only if asked to, and before they are imported.
for _module in ("case", "encoding", "features", "learning", "loading", "reward_functions", "sharing"):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")
