"""Lightning Fabric: an optimizer and a schedule from the same block."""

from lightning.fabric import Fabric
from spirals import Net, report

from lightning_novograd import build_optimizers

fabric = Fabric(accelerator="cpu", devices=1)  # or as many as you like, with any strategy and precision
fabric.launch()
epochs, net = 30, Net()
loader = fabric.setup_dataloaders(net.train_dataloader())
block = {"name": "novograd", "lr": 0.02, "sched": {"name": "CosineAnnealing", "warmup_ratio": 0.1}}
built = build_optimizers(block, net, max_steps=epochs * len(loader))
module, optimizer = fabric.setup(net, built["optimizer"])
module.mark_forward_method("training_step")
scheduler = built["lr_scheduler"]["scheduler"]
for _ in range(epochs):
    for batch in loader:
        fabric.backward(module.training_step(batch))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
report(net, built["optimizer"])
