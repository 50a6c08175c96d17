"""How several processes train one model: DDP with its options and communication hooks, FSDP2."""
