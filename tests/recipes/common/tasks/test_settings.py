"""What a task's config may say."""

import pytest
from tiny_task import config

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.tasks.settings import TaskSettings


def test_what_recipes_share_is_taken():
    settings = TaskSettings.read(config(seed=7, checkpoint={"test": "best"}), "")
    assert (settings.seed, settings.checkpoint.test, settings.validates) == (7, "best", True)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"freeze": ["*"]}, r"^freeze: is of the speech recipe"),
        ({"init_from": "run"}, r"^init_from: is of the speech recipe"),
        ({"num_samples": 1}, r"^num_samples: is of the speech recipe"),
        ({"early_stopping": {"patience": 2}}, r"^early_stopping: is of the speech recipe"),
        ({"published": {"source": "it", "wer": {}}}, r"^published: is of the speech recipe"),
        ({"checkpoint": {"average": 3}}, r"^checkpoint\.average: is of the speech recipe"),
        ({"trainer": {"strategy": "fsdp2"}}, r"^trainer\.strategy: 'fsdp2' is of the speech recipe"),
        ({"trainer": {"max_epoch": 3}}, r"^trainer\.max_epoch: unknown key; did you mean 'max_epochs'"),
        ({"checkpoint": {"test": "best"}, "trainer": {"limit_val_batches": 0}}, "there is no dev result to choose by"),
    ],
)
def test_what_is_of_the_speech_recipe_is_refused(changes, problem):
    cfg = config()
    for name, value in changes.items():
        cfg[name] = {**cfg[name], **value} if name in cfg else value
    with pytest.raises(ConfigError, match=problem):
        TaskSettings.read(cfg, "")
