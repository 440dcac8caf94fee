"""`dina-lrm train`: learn a reward."""

from __future__ import annotations

from dina_lrm.cli.options import JsonOption, OutOption, RecipeArgument, ResumeOption, SetOption, resume_of
from dina_lrm.cli.output import print_json


def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model; ends with the path of the model folder."""
    from dina_lrm.cli.recipes import read_recipe
    from dina_lrm.training import TrainConfig, Trainer

    config = read_recipe(recipe, TrainConfig, overrides, out)
    model = Trainer(config).run(resume_of(resume))
    if as_json:
        print_json({"model": str(model), "out": str(config.out)})
    else:
        print(model)
