"""The parts of a run that a whole run hides."""

from types import SimpleNamespace

import pytest

from lightning_novograd.recipes.asr.training.run import measure

DEV = {"dev_wer": 0.5, "dev_cer": 0.25, "dev_loss": 3.0}
TEST = {"test_wer": 0.75, "test_cer": 0.125}


@pytest.mark.parametrize("checkpoint", [None, "best.ckpt"])
@pytest.mark.parametrize("has_test_set", [True, False])
def test_what_is_measured_is_read_as_data_and_only_where_there_is_a_set(checkpoint, has_test_set):
    asked = []

    def evaluate(name, measured):
        return lambda *args, **options: asked.append((name, args, options)) or [measured]

    trainer = SimpleNamespace(validate=evaluate("dev", DEV), test=evaluate("test", TEST))
    module, data = object(), SimpleNamespace(has_test_set=has_test_set)
    found = measure(trainer, module, data, checkpoint)
    rates = {**DEV, **(TEST if has_test_set else dict.fromkeys(TEST))}
    assert found == {name: rates[name] for name in ("dev_wer", "test_wer", "dev_cer", "test_cer")}
    assert [name for name, _, _ in asked] == ["dev", "test"][: 1 + has_test_set]
    for _, args, options in asked:
        assert args == (module,)
        assert options == {"datamodule": data, "ckpt_path": checkpoint, "verbose": False, "weights_only": True}
