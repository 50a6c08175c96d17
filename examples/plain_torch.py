"""Plain torch: an optimizer and a schedule from the same block."""

from spirals import Net, report

from lightning_novograd import build_optimizers

epochs, net = 30, Net()
loader = net.train_dataloader()
block = {"name": "novograd", "lr": 0.02, "sched": {"name": "CosineAnnealing", "warmup_ratio": 0.1}}
built = build_optimizers(block, net, max_steps=epochs * len(loader))
optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
for _ in range(epochs):
    for batch in loader:
        net.training_step(batch).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
report(net, optimizer)
