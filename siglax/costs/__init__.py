"""What a training costs, told without its machines: memory, FLOPs, traffic between devices."""
