"""A fit on two processes over gloo; each says how long its schedule is and how many steps it made."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    from ranks import leave
    from tiny_fit import Net, loader, trainer

    net = Net({"name": "sgd", "sched": {"name": "cosine"}})
    run = trainer(max_epochs=3, devices=2, strategy="ddp", accumulate_grad_batches=2)
    run.fit(net, loader(14))  # 7 per process: 4 batches, 2 steps per epoch
    length = run.lr_scheduler_configs[0].scheduler.arguments["max_steps"]
    # the newline in the same write: the ranks share a pipe
    print(f"rank {run.global_rank}: length {length}, steps {len(net.lrs)}\n", end="", flush=True)
    leave()
