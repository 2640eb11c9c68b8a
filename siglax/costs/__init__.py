"""What a training costs, told without its machines: memory, FLOPs, traffic between devices."""

# Up to so many devices the step is compiled for all of them (scaled.py). Here, where jax is not yet
# imported: `siglax plan` has to tell it the number first.
COMPILED = 512
