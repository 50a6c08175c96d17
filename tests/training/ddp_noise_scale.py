"""A fit on two processes over gloo; each says what it measured of the gradients' noise."""

import sys
from datetime import timedelta
from pathlib import Path

if __name__ == "__main__":
    sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    from lightning.pytorch.strategies import DDPStrategy
    from ranks import leave
    from test_noise_scale import BATCHES, Dropping, Net
    from tiny_fit import trainer
    from torch.utils.data import DataLoader

    from lightning_novograd.training.callbacks import GradientNoiseScale

    callback = GradientNoiseScale(every_n_steps=1)
    run = trainer(
        max_epochs=1,
        devices=2,
        strategy=DDPStrategy(
            find_unused_parameters=sys.argv[2] == "Dropping",
            process_group_backend="gloo",
            timeout=timedelta(seconds=60),
        ),
        accumulate_grad_batches=int(sys.argv[1]),
        callbacks=[callback],
        use_distributed_sampler=False,
    )
    net = {"Net": Net, "Dropping": Dropping}[sys.argv[2]]()
    own = BATCHES[int(run.local_rank) : 12 : 2]
    run.fit(net, DataLoader(own, batch_size=None))
    for index, record in enumerate(callback.records):
        # the newline in the same write: the ranks share a pipe
        print(f"measured {index} {record.sq_gradient} {record.trace} {record.batch_size}\n", end="", flush=True)
    leave()
