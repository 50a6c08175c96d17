"""What `trainer.strategy` and the `distributed` block become; what does not go together is refused in one line."""

from datetime import timedelta

import pytest

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.engines.batch_norm import SyncBatchNormOnCPU
from lightning_novograd.recipes.common.engines.ddp import HookedDDPStrategy
from lightning_novograd.recipes.common.engines.sharding import FSDP2Strategy
from lightning_novograd.recipes.common.engines.strategy import build_strategy, layer_sync
from lightning_novograd.recipes.common.settings.distributed import DistributedSettings


def build(block: dict, world_size: int = 2, **trainer):
    return build_strategy(DistributedSettings.read(block, "distributed"), trainer, world_size)


@pytest.mark.parametrize("name", ["ddp", "auto"])
def test_ddp_gets_the_options(name):
    block = {"bucket_cap_mb": 50, "gradient_as_bucket_view": True, "static_graph": True, "process_group_timeout": 90}
    strategy = build(block, strategy=name)
    assert isinstance(strategy, HookedDDPStrategy)
    assert strategy._ddp_kwargs == {"bucket_cap_mb": 50.0, "gradient_as_bucket_view": True, "static_graph": True}
    assert strategy._timeout == timedelta(seconds=90)
    assert strategy.communication == (None, None, None)


def test_powersgd_gets_its_options():
    options = {"rank": 4, "start_step": 10, "min_compression_rate": 3, "epsilon": 1e-6}
    block = {"comm_hook": "powersgd", "comm_wrapper": "bf16", "powersgd": options}
    state, hook, wrapper = build(block, strategy="ddp").communication
    assert (state.matrix_approximation_rank, state.start_powerSGD_iter) == (4, 10)
    assert (state.min_compression_rate, state.orthogonalization_epsilon) == (3.0, 1e-6)
    assert (hook.__name__, wrapper.__name__) == ("powerSGD_hook", "bf16_compress_wrapper")


def test_fsdp2():
    strategy = build({"process_group_timeout": 60}, world_size=4, strategy="fsdp2", precision="bf16-mixed")
    assert isinstance(strategy, FSDP2Strategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (4, 1)
    assert strategy._timeout == timedelta(seconds=60)


def test_other_strategies_are_lightnings():
    assert build({}, strategy="ddp_find_unused_parameters_true") == "ddp_find_unused_parameters_true"
    assert build({}, world_size=1) == "auto"


def test_one_process_has_nothing_to_send(caplog):
    assert build({"comm_hook": "bf16", "static_graph": True}, world_size=1, strategy="auto") == "auto"
    assert "distributed.static_graph, distributed.comm_hook has nothing to do" in caplog.text


@pytest.mark.parametrize(
    ("block", "trainer", "message"),
    [
        ({"comm_hok": "bf16"}, {}, "distributed.comm_hok: unknown key; did you mean 'comm_hook'"),
        ({"comm_hook": "bf61"}, {}, "distributed.comm_hook: 'bf61' is unknown; did you mean 'bf16'"),
        ({"comm_hook": {"_target_": "os.system"}}, {}, "distributed.comm_hook: .* is unknown"),
        ({"_target_": "os.system"}, {}, "distributed._target_: is refused"),
        ({"powersgd": {"rnk": 1}}, {}, "distributed.powersgd.rnk: unknown key; did you mean 'rank'"),
        ({"comm_hook": "powersgd", "powersgd": {"start_step": 1}}, {}, "powersgd.start_step: must be at least 2"),
        ({"powersgd": {"rank": 2}}, {}, "distributed.powersgd: is for comm_hook=powersgd"),
        ({"comm_wrapper": "bf16"}, {}, "distributed.comm_wrapper: 'bf16' is for comm_hook=powersgd"),
        ({"comm_hook": "bf16", "comm_wrapper": "bf16"}, {}, "alone it is comm_hook=bf16"),
        ({"process_group_timeout": 0}, {}, "distributed.process_group_timeout: must be more than 0"),
        (
            {"comm_hook": "powersgd"},
            {"strategy": "ddp", "precision": "16-mixed"},
            "distributed.comm_hook: powersgd keeps errors.*use bf16-mixed",
        ),
        ({"static_graph": True}, {"strategy": "fsdp2"}, "distributed.static_graph: is of DDP, and .* is 'fsdp2'"),
        ({"bucket_cap_mb": 50}, {"strategy": "ddp_spawn"}, "distributed.bucket_cap_mb: is of DDP"),
        ({"process_group_timeout": 9}, {"strategy": "ddp_spawn"}, "process_group_timeout: is of .* ddp or fsdp2"),
        ({}, {"strategy": "fsdp2", "sync_batchnorm": True}, "trainer.sync_batchnorm: is of DDP"),
        ({}, {"strategy": "fsdp2", "precision": "16-mixed"}, "'16-mixed' is not one .* for fsdp2: 32-true, bf16-mixed"),
        ({}, {"strategy": "fsdp2", "precision": "64-true"}, "trainer.precision: '64-true' is not one"),
    ],
)
def test_what_does_not_go_together_is_refused(block, trainer, message):
    with pytest.raises(ConfigError, match=message):
        build(block, **{"strategy": "ddp", **trainer})


def test_batch_norm_is_shared_by_our_own_layers_on_the_cpu_alone():
    cpu = {"accelerator": "cpu", "strategy": "ddp", "sync_batchnorm": True}
    assert isinstance(layer_sync(cpu, 2), SyncBatchNormOnCPU)
    assert layer_sync(cpu, 1) is None
    assert layer_sync({**cpu, "sync_batchnorm": False}, 2) is None
    assert layer_sync({**cpu, "accelerator": "gpu"}, 2) is None
