"""What a training costs, told without its machines: memory, FLOPs, traffic between devices."""

# Up to so many devices the step is compiled for all of them (scaled.py).
COMPILED = 512
# Where mesh.fsdp is too large for that, up to so many. Here, where jax is not yet imported: `siglax
# plan` has to tell it the number first.
VIRTUAL = 768
